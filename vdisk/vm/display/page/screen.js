// The page's side of the web display. Messages of the server:
//   binary  1, 0, width:u16, height:u16                   a picture of that size follows
//           2, 0, count:u16, then count times x, y, width, height: u16 and RGBA pixels
//   text    {"type": "state", "name", "status", "leds", "drives": [...]}
// All numbers are big-endian. Pictures are answered by {"type": "shown"}: then the next may come.

const byId = (id) => document.getElementById(id);
const canvas = byId("screen");
const context = canvas.getContext("2d", { alpha: false });
const RECONNECT_MS = 1000;
const SILENCE_MS = 6000; // the state comes twice a second: so long without it, the way is gone
const TEXT_LENGTH = 100; // characters of one message
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

const WORDS = { "io-error": "disk error", shutdown: "off", "internal-error": "crashed", prelaunch: "not started", suspended: "asleep", "save-vm": "saving", "restore-vm": "loading" };

const NOTICES = { paused: "Paused", shutdown: "The guest has turned itself off", suspended: "The guest sleeps until a key is pressed" };

// Asleep, too, it can be paused.
const goesOn = (now) => now.status === "running" || now.status === "suspended";

function showState(now) {
  state = now;
  document.title = `${now.name} - vdisk`;
  byId("name").textContent = now.name;
  const status = byId("status");
  status.textContent = WORDS[now.status] ?? now.status;
  status.className = "status " + ({ running: "running", paused: "paused", prelaunch: "paused", suspended: "paused" }[now.status] ?? "broken");
  const running = goesOn(now);
  byId("pause").querySelector("span").textContent = running ? "Pause" : "Resume";
  byId("pause").querySelector("path").setAttribute("d", running ? "M4 3h3v10H4zM9 3h3v10H9z" : "M4 2.5v11l9-5.5z");
  notice(NOTICES[now.status] ?? "");
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

// What has no code: the keyboard of a telephone says what was typed, at most.
const BY_KEY = { Enter: "Enter", Backspace: "Backspace", Tab: "Tab", Escape: "Escape", ArrowUp: "ArrowUp", ArrowDown: "ArrowDown", ArrowLeft: "ArrowLeft", ArrowRight: "ArrowRight" };
const typed = byId("typed");
const FULL = " "; // something that a backspace can take away

function press(...codes) {
  for (const code of codes) send({ type: "key", code, down: true });
  for (const code of codes.reverse()) send({ type: "key", code, down: false });
}

function type(text) {
  const characters = Array.from(text.replace(/\r\n?/g, "\n"));
  while (characters.length) send({ type: "text", text: characters.splice(0, TEXT_LENGTH).join("") });
}

typed.addEventListener("keydown", (event) => {
  if (event.code) return key(event, true);
  if (!(event.key in BY_KEY)) return;
  event.preventDefault();
  press(BY_KEY[event.key]);
});
typed.addEventListener("keyup", (event) => event.code && key(event, false));
typed.addEventListener("input", (event) => {
  if (event.isComposing) return;
  if (event.inputType === "deleteContentBackward") press("Backspace");
  else type(typed.value.slice(FULL.length));
  typed.value = FULL;
});
typed.addEventListener("blur", releaseAll);

// A finger moves the mouse as on a touchpad: a tap clicks, two fingers' tap is the right button,
// a tap and then a finger drags, two fingers turn the wheel.
const TAP_MS = 250, TAP_PIXELS = 8, WHEEL_PIXELS = 24;
const touch = { at: null, began: 0, moved: 0, fingers: 0, tapped: -Infinity, dragging: false };
const middle = (touches) => [0, 1].map((axis) => Array.from(touches).reduce((sum, one) => sum + (axis ? one.clientY : one.clientX), 0) / touches.length);

canvas.addEventListener("touchstart", (event) => {
  event.preventDefault();
  const now = event.timeStamp;
  touch.at = middle(event.touches);
  if (event.touches.length === 1) {
    Object.assign(touch, { began: now, moved: 0, fingers: 1, dragging: now - touch.tapped < TAP_MS });
    if (touch.dragging) send({ type: "buttons", buttons: 1 });
  }
  touch.fingers = Math.max(touch.fingers, event.touches.length);
}, { passive: false });
canvas.addEventListener("touchmove", (event) => {
  event.preventDefault();
  const [x, y] = middle(event.touches);
  const [dx, dy] = [x - touch.at[0], y - touch.at[1]];
  touch.at = [x, y];
  touch.moved += Math.abs(dx) + Math.abs(dy);
  const scale = canvas.width / (canvas.clientWidth || 1);
  if (touch.fingers > 1) move(0, 0, -dy / WHEEL_PIXELS);
  else move(dx * scale, dy * scale, 0);
}, { passive: false });
canvas.addEventListener("touchend", (event) => {
  event.preventDefault();
  if (event.touches.length) return void (touch.at = middle(event.touches));
  const tap = event.timeStamp - touch.began < TAP_MS && touch.moved < TAP_PIXELS;
  if (tap && !touch.dragging) send({ type: "buttons", buttons: touch.fingers > 1 ? 2 : 1 });
  if (tap || touch.dragging) send({ type: "buttons", buttons: 0 });
  touch.tapped = tap && touch.fingers === 1 && !touch.dragging ? event.timeStamp : -Infinity;
}, { passive: false });

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

async function answered(dialog) {
  dialog.returnValue = "no";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  return dialog.returnValue === "yes";
}

async function confirmed(question, word) {
  byId("question").textContent = question;
  byId("yes").textContent = word;
  return answered(byId("confirm"));
}

byId("pause").onclick = () => send({ type: "power", action: goesOn(state) ? "stop" : "cont" });
byId("powerdown").onclick = () => send({ type: "power", action: "powerdown" });
byId("reset").onclick = async () => {
  if (await confirmed("Reset the machine? What the guest has not written to its disks is lost.", "Reset")) send({ type: "power", action: "reset" });
};
byId("keys").onclick = () => {
  press("ControlLeft", "AltLeft", "Delete");
  canvas.focus();
};
byId("escape").onclick = () => press("Escape");
byId("keyboard").onclick = () => {
  typed.value = FULL;
  typed.focus();
};
byId("paste").onclick = async () => {
  byId("text").value = "";
  if (await answered(byId("pasting"))) type(byId("text").value);
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

let heard = 0;
let farewell = "";  // why the server left, until there is one again

function connect() {
  const mine = new WebSocket(new URL("socket", location.href.replace(/^http/, "ws")));
  socket = mine;
  heard = performance.now();
  mine.binaryType = "arraybuffer";
  mine.onmessage = ({ data }) => {
    if (mine !== socket) return;
    heard = performance.now();
    farewell = "";
    typeof data === "string" ? showState(JSON.parse(data)) : draw(data);
  };
  mine.onclose = ({ code, reason }) => {
    if (mine !== socket) return;
    if (code === 4000) farewell = reason;
    lost(farewell || "The machine has ended, or cannot be reached");
  };
}

function lost(why) {
  socket = null;
  const status = byId("status");
  status.textContent = "not connected";
  status.className = "status broken";
  for (const button of document.querySelectorAll("nav button")) button.disabled = true;
  notice(why);
  before = null;
  held.clear();
  setTimeout(connect, RECONNECT_MS);
}

// A network that is gone says nothing: the browser would wait for minutes.
function listen() {
  if (socket === null || performance.now() - heard < SILENCE_MS) return;
  const silent = socket;
  lost("The machine cannot be reached");
  silent.close();
}
setInterval(listen, RECONNECT_MS);
addEventListener("online", listen);
document.addEventListener("visibilitychange", listen);

for (const button of document.querySelectorAll("nav button")) button.disabled = true;
connect();
canvas.focus();
