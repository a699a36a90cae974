// Bytes, hashes and keys: what the other modules are made of.
import { createCipheriv, createHash, createPrivateKey, createPublicKey, diffieHellman, sign, verify }
  from "node:crypto";

export const hex = (bytes) => Buffer.from(bytes).toString("hex");
export const unhex = (text) => Buffer.from(text, "hex");
export const ascii = (text) => Buffer.from(text, "latin1");
export const sha256 = (...parts) => {
  const state = createHash("sha256");
  for (const part of parts) state.update(part);
  return state.digest();
};

export function le(value, size) {
  const out = Buffer.alloc(size);
  let rest = BigInt(value);
  for (let i = 0; i < size; i++, rest >>= 8n) out[i] = Number(rest & 255n);
  return out;
}
export const be = (value, size) => le(value, size).reverse();
export function number(bytes) { // little endian
  let value = 0n;
  for (let i = bytes.length - 1; i >= 0; i--) value = (value << 8n) | BigInt(bytes[i]);
  return value;
}

// secure_agg/PROTOCOL.md, section 3
export const tag = (name) => sha256(ascii(`fedsys/secure_agg/2|${name}`));
export const digest = (name, ...parts) =>
  sha256(tag(name), ...parts.flatMap((part) => [le(part.length, 8), part]));

export class Keystream { // AES-256 in counter mode, from a block of 16 bytes on
  constructor(key, block = 0n) {
    this.cipher = createCipheriv("aes-256-ctr", key, be(block, 16));
  }
  read(count) { return this.cipher.update(Buffer.alloc(count)); }
}

const HEADS = { ed25519: ["302e020100300506032b657004220420", "302a300506032b6570032100"],
                x25519: ["302e020100300506032b656e04220420", "302a300506032b656e032100"] };
const privateKey = (kind, raw) => createPrivateKey(
  { key: Buffer.concat([unhex(HEADS[kind][0]), raw]), format: "der", type: "pkcs8" });
const publicKey = (kind, raw) => createPublicKey(
  { key: Buffer.concat([unhex(HEADS[kind][1]), raw]), format: "der", type: "spki" });
export const publicOf = (kind, raw) =>
  createPublicKey(privateKey(kind, raw)).export({ format: "der", type: "spki" }).subarray(-32);
export const signed = (raw, message) => sign(null, message, privateKey("ed25519", raw));
export const verifies = (raw, signature, message) =>
  verify(null, message, publicKey("ed25519", raw), signature);
export const agree = (raw, other) =>
  diffieHellman({ privateKey: privateKey("x25519", raw), publicKey: publicKey("x25519", other) });
