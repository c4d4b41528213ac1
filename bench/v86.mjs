// A machine of v86 (npm package `v86`) without a window, its first serial line on standard input
// and output: what bench/boot.py measures beside ours.
//
//     node bench/v86.mjs FOLDER BIOS VGABIOS MEMORY_MIB KERNEL INITRD COMMAND_LINE
//
// FOLDER: where bench/install-v86.sh put the package.

import { readFileSync } from "node:fs";
import { join } from "node:path";

const [folder, bios, vgaBios, memory, kernel, initrd, commandLine] = process.argv.slice(2);
const build = join(folder, "node_modules", "v86", "build");
const { V86 } = await import(join(build, "libv86.mjs"));

function image(path) {
    const bytes = readFileSync(path);
    return { buffer: bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length) };
}

const machine = new V86({
    wasm_path: join(build, "v86.wasm"),
    bios: image(bios),
    vga_bios: image(vgaBios),
    memory_size: Number(memory) << 20,
    vga_memory_size: 8 << 20,
    bzimage: image(kernel),
    initrd: image(initrd),
    cmdline: commandLine,
    autostart: true,
    disable_speaker: true,
});

let said = [];

function flush() {
    process.stdout.write(Buffer.from(said));
    said = [];
}

machine.add_listener("serial0-output-byte", (byte) => {
    if (said.length === 0) {
        setImmediate(flush);
    }
    said.push(byte);
});
process.stdin.on("data", (data) => {
    for (const byte of data) {
        machine.bus.send("serial0-input", byte);
    }
});
