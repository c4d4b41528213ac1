// The page's side of the web display. Messages of the server:
//   binary  1, 0, width:u16, height:u16                   a picture of that size follows
//           2, 0, count:u16, then count times x, y, width, height: u16 and RGBA pixels
//   text    {"type": "state", "name", "status", "leds", "drives": [...]}
// All numbers are big-endian. Pictures are answered by {"type": "shown"}: then the next may come.

const byId = (id) => document.getElementById(id);
const canvas = byId("screen");
const context = canvas.getContext("2d", { alpha: false });
const RECONNECT_MS = 1000;
const held = new Set();
let socket = null;
let state = { status: "connecting", drives: [] };
let before = null;

function send(message) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

// -- the picture ----------------------------------------------------------------------------------

function resize(width, height) {
  canvas.width = width;
  canvas.height = height;
  canvas.style.setProperty("--ratio", width / height);
  canvas.style.setProperty("--width", width);
  byId("size").textContent = `${width} × ${height}`;
}

function draw(buffer) {
  const view = new DataView(buffer);
  if (view.getUint8(0) === 1) return resize(view.getUint16(2), view.getUint16(4));
  let at = 4;
  for (let count = view.getUint16(2); count > 0; count--) {
    const [x, y, width, height] = [0, 2, 4, 6].map((offset) => view.getUint16(at + offset));
    const length = width * height * 4;
    const pixels = new Uint8ClampedArray(buffer, at + 8, length);
    context.putImageData(new ImageData(pixels, width, height), x, y);
    at += 8 + length;
  }
  requestAnimationFrame(() => send({ type: "shown" }));
}

// -- the state ------------------------------------------------------------------------------------

const WORDS = { "io-error": "disk error", shutdown: "off", "internal-error": "crashed", prelaunch: "not started", "save-vm": "saving", "restore-vm": "loading" };

function showState(now) {
  state = now;
  document.title = `${now.name} - vdisk`;
  byId("name").textContent = now.name;
  const status = byId("status");
  status.textContent = WORDS[now.status] ?? now.status;
  status.className = "status " + ({ running: "running", paused: "paused", prelaunch: "paused" }[now.status] ?? "broken");
  const running = now.status === "running";
  byId("pause").querySelector("span").textContent = running ? "Pause" : "Resume";
  byId("pause").querySelector("path").setAttribute("d", running ? "M4 3h3v10H4zM9 3h3v10H9z" : "M4 2.5v11l9-5.5z");
  notice(now.status === "paused" ? "Paused" : now.status === "shutdown" ? "The guest has turned itself off" : "");
  for (const led of byId("leds").children) led.classList.toggle("on", Boolean(now.leds & led.dataset.bit));
  showDrives(now.drives);
  for (const button of document.querySelectorAll("nav button")) button.disabled = false;
}

function rate(bytes, seconds) {
  const units = ["B", "KiB", "MiB", "GiB"];
  let value = bytes / seconds, unit = 0;
  while (value >= 1000 && unit < units.length - 1) { value /= 1024; unit++; }
  return `${value < 10 && unit ? value.toFixed(1) : Math.round(value)} ${units[unit]}/s`;
}

function showDrives(drives) {
  const list = byId("drives");
  const now = performance.now();
  const seconds = before ? Math.max(now - before.time, 1) / 1000 : 1;
  list.replaceChildren(...drives.map((drive) => {
    const old = before?.drives[drive.device] ?? drive;
    const [read, written] = [drive.rd_bytes - old.rd_bytes, drive.wr_bytes - old.wr_bytes];
    const item = document.createElement("li");
    item.title = drive.filename ?? "empty";
    const light = Object.assign(document.createElement("span"), { className: "light" + (written > 0 ? " write" : read > 0 ? " read" : "") });
    const name = Object.assign(document.createElement("b"), { textContent: drive.device });
    const text = !drive.filename ? "empty" : written > 0 ? `write ${rate(written, seconds)}` : read > 0 ? `read ${rate(read, seconds)}` : "idle";
    item.append(light, name, Object.assign(document.createElement("span"), { className: "rate", textContent: text }));
    return item;
  }));
  before = { time: now, drives: Object.fromEntries(drives.map((drive) => [drive.device, drive])) };
}

function notice(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

// -- the keyboard and the mouse -------------------------------------------------------------------

function key(event, down) {
  if (!event.code || event.isComposing) return;
  event.preventDefault();
  if (down && event.ctrlKey && event.altKey && document.pointerLockElement) document.exitPointerLock();
  down ? held.add(event.code) : held.delete(event.code);
  send({ type: "key", code: event.code, down });
}

function releaseAll() {
  for (const code of held) send({ type: "key", code, down: false });
  held.clear();
}

canvas.addEventListener("keydown", (event) => key(event, true));
canvas.addEventListener("keyup", (event) => key(event, false));
canvas.addEventListener("blur", releaseAll);

// A browser counts left, right, middle in "buttons", as a PS/2 mouse does.
const motion = { dx: 0, dy: 0, wheel: 0, pending: false };

function move(dx, dy, wheel) {
  motion.dx += dx;
  motion.dy += dy;
  motion.wheel += wheel;
  if (motion.pending) return;
  motion.pending = true;
  requestAnimationFrame(() => {
    const [x, y, clicks] = [motion.dx, motion.dy, motion.wheel].map(Math.trunc);
    motion.dx -= x; motion.dy -= y; motion.wheel -= clicks;
    motion.pending = false;
    if (x || y || clicks) send({ type: "move", dx: x, dy: y, wheel: clicks });
  });
}

const captured = () => document.pointerLockElement === canvas;
canvas.addEventListener("mousedown", (event) => {
  canvas.focus();
  if (captured()) send({ type: "buttons", buttons: event.buttons & 7 });
  else canvas.requestPointerLock()?.catch(() => {});
  event.preventDefault();
});
canvas.addEventListener("mouseup", (event) => captured() && send({ type: "buttons", buttons: event.buttons & 7 }));
canvas.addEventListener("mousemove", (event) => {
  const scale = canvas.width / (canvas.clientWidth || 1);
  if (captured()) move(event.movementX * scale, event.movementY * scale, 0);
});
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  if (captured()) move(0, 0, Math.sign(event.deltaY));
}, { passive: false });
canvas.addEventListener("contextmenu", (event) => event.preventDefault());
document.addEventListener("pointerlockchange", () => {
  byId("hint").textContent = captured() ? "The mouse is in the machine; Ctrl+Alt gives it back." : "Click the screen to use its mouse; Ctrl+Alt gives it back.";
  if (!captured()) send({ type: "buttons", buttons: 0 });
});

// -- the buttons ----------------------------------------------------------------------------------

async function confirmed(question, word) {
  const dialog = byId("confirm");
  byId("question").textContent = question;
  byId("yes").textContent = word;
  dialog.returnValue = "no";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  return dialog.returnValue === "yes";
}

byId("pause").onclick = () => send({ type: "power", action: state.status === "running" ? "stop" : "cont" });
byId("powerdown").onclick = () => send({ type: "power", action: "powerdown" });
byId("reset").onclick = async () => {
  if (await confirmed("Reset the machine? What the guest has not written to its disks is lost.", "Reset")) send({ type: "power", action: "reset" });
};
byId("keys").onclick = () => {
  const codes = ["ControlLeft", "AltLeft", "Delete"];
  for (const code of codes) send({ type: "key", code, down: true });
  for (const code of codes.reverse()) send({ type: "key", code, down: false });
  canvas.focus();
};
byId("screenshot").onclick = () => canvas.toBlob((blob) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${state.name ?? "screen"}.png`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
byId("fullscreen").onclick = async () => {
  await byId("frame").requestFullscreen();
  await navigator.keyboard?.lock?.().catch(() => {});
  canvas.focus();
};

// -- the connection -------------------------------------------------------------------------------

function connect() {
  socket = new WebSocket(new URL("socket", location.href.replace(/^http/, "ws")));
  socket.binaryType = "arraybuffer";
  socket.onmessage = ({ data }) => (typeof data === "string" ? showState(JSON.parse(data)) : draw(data));
  socket.onclose = ({ code, reason }) => {
    const status = byId("status");
    status.textContent = "not connected";
    status.className = "status broken";
    for (const button of document.querySelectorAll("nav button")) button.disabled = true;
    notice(code === 4000 ? reason : "The machine has ended, or cannot be reached");
    before = null;
    held.clear();
    setTimeout(connect, RECONNECT_MS);
  };
}

for (const button of document.querySelectorAll("nav button")) button.disabled = true;
connect();
canvas.focus();
