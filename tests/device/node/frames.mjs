// DEVICE.md, "Frames": a message in pieces of 28 bytes of head and their data.
import { crc32 } from "node:zlib";
import { le, number } from "./bytes.mjs";

export function* split(parcel, message, chunk = 1 << 20) {
  for (let offset = 0; offset < Math.max(message.length, 1); offset += chunk) {
    const data = message.subarray(offset, offset + chunk);
    yield Buffer.concat([le(parcel, 8), le(message.length, 8), le(offset, 8), le(crc32(data), 4), data]);
  }
}

export class Assembler {
  constructor() { this.parcel = 0; this.parts = []; this.have = 0; }
  add(frame) { // the whole message once it is complete, else null
    const [parcel, size, offset] = [0, 8, 16].map((at) => Number(number(frame.subarray(at, at + 8))));
    const data = frame.subarray(28);
    if (parcel !== this.parcel || offset !== this.have || frame.readUInt32LE(24) !== crc32(data)) {
      throw new Error(`a damaged frame of parcel ${parcel}`);
    }
    this.parts.push(Buffer.from(data));
    this.have += data.length;
    if (this.have < size) return null;
    const whole = Buffer.concat(this.parts);
    this.parcel++; this.parts = []; this.have = 0;
    return whole;
  }
}
