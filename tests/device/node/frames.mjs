// DEVICE.md, "Frames": a message in pieces of 28 bytes of head and their data.
import { le, number } from "./bytes.mjs";

const MOST = 1 << 20, LEAST = 1 << 14;
const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? (byte >>> 1) ^ 0xedb88320 : byte >>> 1;
  return byte;
});
export function crc32(data) { // zlib's; Node has it from 20.15 on
  let state = 0xffffffff;
  for (const byte of data) state = TABLE[(state ^ byte) & 255] ^ (state >>> 8);
  return (state ^ 0xffffffff) >>> 0;
}

export function* split(parcel, message, chunk = MOST) {
  for (let offset = 0; offset < Math.max(message.length, 1); offset += chunk) {
    const data = message.subarray(offset, offset + chunk);
    yield Buffer.concat([le(parcel, 8), le(message.length, 8), le(offset, 8), le(crc32(data), 4), data]);
  }
}

export class Assembler {
  constructor(most = Infinity) { this.most = most; this.parcel = 0; this.parts = []; this.have = 0; }
  add(frame) { // the whole message once it is complete, else null
    const [parcel, size, offset] = [0, 8, 16].map((at) => Number(number(frame.subarray(at, at + 8))));
    const data = frame.subarray(28), last = this.have + data.length === size;
    if (size > this.most) throw new Error(`parcel ${parcel} is announced to have ${size} bytes`);
    if (parcel !== this.parcel || offset !== this.have || frame.readUInt32LE(24) !== crc32(data) ||
        data.length > MOST || this.have + data.length > size || (data.length < LEAST && !last)) {
      throw new Error(`a damaged frame of parcel ${parcel}`);
    }
    this.parts.push(Buffer.from(data));
    this.have += data.length;
    if (!last) return null;
    const whole = Buffer.concat(this.parts);
    this.parcel++; this.parts = []; this.have = 0;
    return whole;
  }
}
