// The wire format of protobuf, and the fields of fleet.proto and of ONNX that are needed here.

const varint = (value) => {
  const out = [];
  let rest = BigInt.asUintN(64, BigInt(value));
  do { out.push(Number(rest & 127n) | (rest > 127n ? 128 : 0)); rest >>= 7n; } while (rest);
  return Buffer.from(out);
};

export function encode(fields) { // [number, value] pairs; 0, "", and empty bytes are left out
  const parts = [];
  for (const [field, value] of fields) {
    if (typeof value === "number" || typeof value === "bigint" || typeof value === "boolean") {
      if (value) parts.push(varint(field << 3), varint(typeof value === "boolean" ? 1 : value));
    } else if (value !== undefined && (value.length || value.always)) {
      const bytes = Buffer.from(value);
      parts.push(varint((field << 3) | 2), varint(bytes.length), bytes);
    }
  }
  return Buffer.concat(parts);
}
export const message = (bytes) => Object.assign(Buffer.from(bytes), { always: true });

export function decode(bytes) { // a map from a field's number to the list of its values
  const found = new Map();
  let at = 0;
  const read = () => {
    let value = 0n, shift = 0n, byte;
    do { byte = bytes[at++]; value |= BigInt(byte & 127) << shift; shift += 7n; } while (byte & 128);
    return value;
  };
  while (at < bytes.length) {
    const key = Number(read());
    let value;
    if ((key & 7) === 0) value = read();
    else if ((key & 7) === 1) { value = bytes.subarray(at, at + 8); at += 8; }
    else if ((key & 7) === 5) { value = bytes.subarray(at, at + 4); at += 4; }
    else { const size = Number(read()); value = bytes.subarray(at, at + size); at += size; }
    found.set(key >> 3, [...(found.get(key >> 3) ?? []), value]);
  }
  return found;
}
export const bytesAt = (fields, number) => fields.get(number)?.[0] ?? Buffer.alloc(0);
export const intAt = (fields, number) => Number(BigInt.asIntN(64, fields.get(number)?.[0] ?? 0n));
