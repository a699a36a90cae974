// DEVICE.md, "Canonical JSON": what is hashed is read strictly, and in one spelling only.

// Python's repr of a float: digits as JavaScript's, but a point or an exponent always, and exponents
// from 1e16 up and below 1e-4 down, of two digits at least.
export function floating(value) {
  if (Object.is(value, -0)) return "-0.0";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e16 || size < 1e-4)) {
    const [digits, power] = value.toExponential().split("e");
    return `${digits}e${power[0]}${power.slice(1).padStart(2, "0")}`;
  }
  const plain = String(value);
  return plain.includes(".") ? plain : `${plain}.0`;
}
const byCodePoint = (a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b));
const quoted = (text) => JSON.stringify(text).replace(/[\u007f-\uffff]/g,
  (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);

// The object, if these bytes are the canonical spelling of one with exactly these keys.
export function read(bytes, keys, optional = []) {
  const text = bytes.toString("latin1");
  let at = 0;
  const fail = () => { throw new Error("JSON that is not canonical"); };
  const take = (pattern) => {
    pattern.lastIndex = at;
    const found = pattern.exec(text);
    if (!found) fail();
    at += found[0].length;
    return found[0];
  };
  const value = (depth) => {
    if (depth > 64) fail();
    const first = text[at];
    if (first === "{") {
      const found = {};
      let before = null;
      at++;
      for (; text[at] !== "}"; before !== null && text[at] === "," && text[at + 1] !== "}" ? at++ : 0) {
        const name = value(depth + 1);
        if (typeof name !== "string" || text[at++] !== ":") fail();
        if (before !== null && byCodePoint(before, name) >= 0) fail();
        found[name] = value(depth + 1);
        if (text[at] !== "," && text[at] !== "}") fail();
        before = name;
      }
      at++;
      return found;
    }
    if (first === "[") {
      const found = [];
      at++;
      for (; text[at] !== "]"; text[at] === "," && text[at + 1] !== "]" ? at++ : 0) {
        found.push(value(depth + 1));
        if (text[at] !== "," && text[at] !== "]") fail();
      }
      at++;
      return found;
    }
    if (first === '"') {
      const raw = take(/"(?:[^"\\]|\\.)*"/y), said = JSON.parse(raw);
      if (quoted(said) !== raw) fail();
      return said;
    }
    const word = /true|false|null/y;
    word.lastIndex = at;
    if (word.test(text)) return JSON.parse(take(word));
    const raw = take(/-?[0-9][-+.0-9eE]*/y), number = Number(raw);
    if (!Number.isFinite(number)) fail();
    if (/[.eE]/.test(raw)) {
      if (floating(number) !== raw) fail();
      return number;
    }
    const whole = /^-?\d+$/.test(raw) ? BigInt(raw) : fail();
    if (String(whole) !== raw || BigInt.asIntN(64, whole) !== whole) fail();
    return Number.isSafeInteger(number) ? number : whole;
  };
  const found = value(0);
  if (at !== text.length || typeof found !== "object" || Array.isArray(found) || found === null) fail();
  const missing = keys.filter((key) => !(key in found));
  const unknown = Object.keys(found).filter((key) => !keys.includes(key) && !optional.includes(key));
  if (missing.length || unknown.length) throw new Error(`missing or unknown keys: ${[...missing, ...unknown]}`);
  return found;
}
