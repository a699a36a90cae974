// secure_agg/PROTOCOL.md for one member: dealer and member of the committee, suite 1.
import { createCipheriv, createDecipheriv } from "node:crypto";
import { agree, ascii, digest, hex, Keystream, le, number, publicOf, sha256, signed, tag, verifies }
  from "./bytes.mjs";

const N = 2048, P = 65521, CHECKS = 8, TAIL = 60;
const PARAMS = 26, MOST_INVITED = 10_000, MOST_BITS = 40, MOST_LOG_Q = 53, MARGIN = 9.5;
const SUITE = ascii("X25519 Ed25519 ChaCha20-Poly1305 SHA-256 AES-256-CTR F65521 RLWE-2048");
const mod = (value) => ((value % P) + P) % P;
const u16 = (values) => Buffer.from(Uint16Array.from(values).buffer);
const values16 = (bytes) => Array.from({ length: bytes.length / 2 }, (_, i) => bytes.readUInt16LE(2 * i));

export function readParams(bytes) {
  const names = "n:2 dimension:4 modulusBits:1 committee:2 colluders:2 quorum:2 threshold:2 packing:2 errors:2 " +
    "minIncluded:2 perCoefficient:1 logQ:1 droppedBits:1 scaleBits:1 suite:1";
  const params = { encoded: Buffer.from(bytes) };
  let at = 0;
  for (const each of names.split(" ")) {
    const [name, size] = each.split(":");
    params[name] = Number(number(bytes.subarray(at, (at += Number(size)))));
  }
  check(params);
  params.used = Math.ceil(params.dimension / params.perCoefficient);
  params.polynomials = Math.ceil(params.used / N);
  params.columns = Math.ceil(N / params.packing);
  params.shareBytes = 2 * (params.columns + CHECKS) + 16;
  params.proofBytes = 2 * CHECKS * params.threshold;
  return params;
}

function check(params) { // what is unsafe on its own terms is refused
  const within = (name, low, high) => {
    if (params[name] < low || params[name] > high) throw new Error(`${name} = ${params[name]}: from ${low} to ${high}`);
  };
  const { n, committee, colluders, threshold, modulusBits, logQ, droppedBits } = params;
  if (params.encoded.length !== PARAMS) throw new Error(`parameters of ${params.encoded.length} bytes`);
  within("n", 2, MOST_INVITED);
  within("dimension", 1, 2 ** 31 - 1);
  within("modulusBits", 2, MOST_BITS);
  within("committee", 2, n);
  within("colluders", 0, committee - 1);
  within("quorum", Math.floor((committee + colluders) / 2) + 1, committee); // 2 q > C + c: one set a sum
  within("threshold", 2, committee);
  within("packing", 1, Math.min(threshold - Math.max(1, colluders), N)); // t - rho >= c: their shares reveal nothing
  within("errors", 0, Math.floor((committee - threshold) / 2));
  within("minIncluded", colluders + 2, n); // a sum with one honest vector would reveal it
  within("logQ", 2, MOST_LOG_Q);
  within("perCoefficient", 1, MOST_LOG_Q);
  within("droppedBits", 0, params.scaleBits);
  const noise = MARGIN * Math.sqrt(n * (81 / 4 + (4 ** droppedBits - 1) / 12));
  within("scaleBits", 1 + Math.ceil(Math.log2(noise)), logQ - modulusBits * params.perCoefficient);
  within("suite", 1, 1);
}

// -- the discrete Gaussian -----------------------------------------------------------------------
export function thresholds() { // floor(2^80 P[X <= v]) for v from -60 to 59, sigma = 9/2
  const bits = 240n, one = 1n << bits;
  const weight = (v) => { // exp(-v^2 / (2 sigma^2)) = exp(-2 v^2 / 81), halved ten times
    const x = ((2n * BigInt(v * v)) << bits) / 81n / 1024n;
    let term = one, sum = 0n;
    for (let k = 1n; term; k++) { sum += term; term = -((term * x) >> bits) / k; }
    for (let i = 0; i < 10; i++) sum = (sum * sum) >> bits;
    return sum;
  };
  const all = Array.from({ length: 2 * TAIL + 1 }, (_, i) => weight(i - TAIL));
  const total = all.reduce((a, b) => a + b);
  let below = 0n;
  return all.slice(0, -1).map((each) => ((below += each) << 80n) / total);
}
const BOUNDS = thresholds();
const HIGH = BOUNDS.map((bound) => Number(bound >> 64n));
export function sample(key, count) {
  const coarse = new Keystream(key).read(2 * count), fine = new Keystream(key, 1n << 64n);
  return Array.from({ length: count }, (_, i) => {
    const bits = coarse.readUInt16LE(2 * i);
    if (!HIGH.includes(bits)) return HIGH.filter((high) => high < bits).length - TAIL;
    const all = (BigInt(bits) << 64n) | number(fine.read(8));
    return BOUNDS.filter((bound) => bound <= all).length - TAIL;
  });
}

// -- masking ---------------------------------------------------------------------------------------
// Place 2 j of an array is the coefficient of X^j, place 2 j + 1 that of X^(j + 1024).
const power = (place) => (place >> 1) + (place & 1) * (N / 2);
function product(a, s) { // in Z[X] / (X^2048 + 1); sums stay below 2^53
  const left = new Float64Array(N), right = new Float64Array(N), out = new Float64Array(N);
  for (let i = 0; i < N; i++) { left[power(i)] = a[i]; right[power(i)] = s[i]; }
  for (let i = 0; i < N; i++) {
    const factor = right[i];
    if (!factor) continue;
    for (let j = 0; j < N - i; j++) out[i + j] += factor * left[j];
    for (let j = N - i; j < N; j++) out[i + j - N] -= factor * left[j];
  }
  return Array.from({ length: N }, (_, i) => out[power(i)]);
}
export function encrypt(vector, secret, seed, noiseKey, params) { // vector: BigInt mod 2^b
  const { modulusBits: b, logQ, droppedBits, scaleBits, used, polynomials } = params;
  const limb = Math.floor((logQ + 1) / 2), stream = new Keystream(seed);
  const noise = sample(noiseKey, polynomials * N);
  const widths = [4, ...({ 0: [], 1: [1], 2: [2], 3: [2, 1] })[Math.max(0, Math.ceil((logQ - droppedBits) / 8) - 4)]];
  const planes = widths.map((width) => Buffer.alloc(width * polynomials * N));
  for (let at = 0; at < polynomials * N; at += N) {
    const raw = stream.read(8 * N);
    const limbs = [0, 1].map((half) =>
      Array.from({ length: N }, (_, i) => raw.readInt32LE(4 * (half * N + i)) >> (32 - limb)));
    const [low, high] = limbs.map((each) => product(each, secret));
    for (let i = 0; i < N; i++) {
      let value = BigInt(low[i]) + (BigInt(high[i]) << BigInt(limb)) + BigInt(noise[at + i]);
      for (let digit = 0; digit < params.perCoefficient && at + i < used; digit++) {
        const x = vector[digit * used + at + i];
        if (x !== undefined) value += BigInt.asIntN(b, x) << BigInt(digit * b + scaleBits);
      }
      if (droppedBits) value += 1n << BigInt(droppedBits - 1);
      value = BigInt.asUintN(logQ, value) >> BigInt(droppedBits);
      widths.forEach((width, plane) => {
        le(value & ((1n << BigInt(8 * width)) - 1n), width).copy(planes[plane], width * (at + i));
        value >>= BigInt(8 * width);
      });
    }
  }
  return Buffer.concat(planes);
}

// -- sharing -----------------------------------------------------------------------------------------
const inverse = (value) => {
  let result = 1, factor = mod(value);
  for (let exponent = P - 2; exponent; exponent >>= 1) {
    if (exponent & 1) result = (result * factor) % P;
    factor = (factor * factor) % P;
  }
  return result;
};
const interpolation = (points, targets) => targets.map((target) => points.map((point, i) => {
  let up = 1, down = 1;
  points.forEach((other, j) => {
    if (i !== j) { up = (up * mod(target - other)) % P; down = (down * mod(point - other)) % P; }
  });
  return (up * inverse(down)) % P;
}));
const range = (from, to) => Array.from({ length: to - from + 1 }, (_, i) => from + i);
const dot = (a, b) => a.reduce((sum, value, i) => (sum + value * b[i]) % P, 0);
function uniform(stream, count) {
  const found = [];
  while (found.length < count) {
    found.push(...values16(stream.read(2 * (count - found.length))).filter((value) => value < P));
  }
  return found;
}
export function share(secret, { committee, threshold, packing, columns }, seed) {
  const stream = new Keystream(seed), width = columns + CHECKS, tau = threshold - packing;
  const masks = uniform(stream, packing * CHECKS), drawn = uniform(stream, tau * width);
  const known = range(0, packing - 1).map((r) => [
    ...range(0, columns - 1).map((k) => mod(secret[k * packing + r] ?? 0)),
    ...masks.slice(r * CHECKS, (r + 1) * CHECKS)]);
  const first = range(0, tau - 1).map((row) => drawn.slice(row * width, (row + 1) * width));
  const points = [...range(1, packing).map((i) => -i), ...range(1, tau)];
  const all = [...known, ...first];
  const others = interpolation(points, range(tau + 1, committee)).map((row) =>
    range(0, width - 1).map((column) => dot(row, all.map((each) => each[column]))));
  return [...first, ...others];
}
const challenge = (statement, columns) => {
  const drawn = uniform(new Keystream(digest("low degree", statement)), CHECKS * columns);
  return range(0, CHECKS - 1).map((i) => drawn.slice(i * columns, (i + 1) * columns));
};

// -- sealing -------------------------------------------------------------------------------------------
const shareKey = (secret, session, dealer, sequence, position, ephemeral, publicKey) =>
  sha256(Buffer.from([0, 0, 0, 1]), secret, tag("seal"), session, le(dealer, 4), le(sequence, 4), le(position, 4),
    ephemeral, publicKey);
const AEAD = ["chacha20-poly1305", Buffer.alloc(12), { authTagLength: 16 }];
function seal(key, plain, session) {
  const cipher = createCipheriv(AEAD[0], key, AEAD[1], AEAD[2]).setAAD(session, { plaintextLength: plain.length });
  return Buffer.concat([cipher.update(plain), cipher.final(), cipher.getAuthTag()]);
}
function unseal(key, sealed, session) {
  const body = sealed.subarray(0, -16), decipher = createDecipheriv(AEAD[0], key, AEAD[1], AEAD[2]);
  decipher.setAAD(session, { plaintextLength: body.length }).setAuthTag(sealed.subarray(-16));
  return Buffer.concat([decipher.update(body), decipher.final()]);
}
export function prekey(identity, secret) { // a signed single-use sealing key
  const publicKey = publicOf("x25519", secret);
  const statement = digest("sealing key", publicOf("ed25519", identity), publicKey);
  return Buffer.concat([Buffer.from([1]), publicKey, signed(identity, statement)]);
}

function lowOrder(publicKey) { // a secret that is zero for every key is refused by OpenSSL
  try { agree(Buffer.alloc(32, 1), publicKey); } catch { return true; }
  return false;
}

// -- a round ---------------------------------------------------------------------------------------------
const OPENING = 1, UPLOAD = 2, DELIVERY = 3, CHECKED = 4, PROPOSAL = 5, ENDORSEMENT = 6, CERTIFICATE = 7, ANSWER = 8;
export const kindOf = (message) => message[1];
const bits = (bytes, count) => range(0, count - 1).filter((i) => (bytes[i >> 3] >> (i & 7)) & 1);

export const rosterHash = (keys, colluders) => digest("roster", le(keys.size, 4),
  colluders === null ? Buffer.alloc(0) : le(colluders, 4),
  sha256(...[...keys].sort(([a], [b]) => a - b).flatMap(([id, key]) => [le(id, 4), key])));

export class Member {
  // agreed: { job, round, model (hash), params (26 bytes), roster (hash) }; keys: id -> Ed25519 key
  constructor({ id, identity, keys, sealing, agreed }) {
    Object.assign(this, { id, identity, keys, sealing, agreed, held: null, chosen: null, replies: new Map() });
  }
  open(message) { // everything in the opening equals what was agreed to; the same one may come again
    if (this.opening) {
      if (this.opening.equals(message)) return;
      throw new Error("a second opening in one round");
    }
    let at = 34;
    const take = (size) => message.subarray(at, (at += size));
    const int = (size) => Number(number(take(size)));
    const round = int(8), buffers = int(4), roster = take(32), params = take(26), sizes = [int(1), int(1), int(1)];
    const [job, model, policy] = sizes.map(take);
    const { agreed } = this;
    if (round !== agreed.round || buffers !== 1 || !roster.equals(agreed.roster) || !params.equals(agreed.params) ||
        !job.equals(agreed.job) || !model.equals(agreed.model) || policy.length) {
      throw new Error("the opening differs from what was agreed to");
    }
    this.params = readParams(params);
    const cohort = range(1, this.params.n).map(() => int(4));
    if (!cohort.includes(this.id)) throw new Error("not invited");
    if (!cohort.every((id, i) => this.keys.has(id) && (i === 0 || id > cohort[i - 1]))) {
      throw new Error("somebody is invited twice, or is not on the roster");
    }
    const committee = [], statements = [];
    for (let seat = 0; seat < this.params.committee; seat++) {
      committee.push(int(4));
      statements.push(int(1) ? take(97) : Buffer.alloc(0));
    }
    if (committee.length !== cohort.length || !committee.every((id, i) => id === cohort[i])) {
      throw new Error("drawn committees are not supported here");
    }
    if (at !== message.length) throw new Error("the committee does not fill the opening");
    const keys = statements.filter((each) => each.length).map((each) => each.subarray(1, 33));
    if (statements.some((each) => each.length && each[0] !== 1)) throw new Error("a sealing key of another suite");
    if (new Set(keys.map(hex)).size !== keys.length) throw new Error("two positions have one sealing key");
    if (keys.some(lowOrder)) throw new Error("a sealing key of low order");
    statements.forEach((each, seat) => {
      const key = this.keys.get(committee[seat]);
      if (each.length && !verifies(key, each.subarray(33), digest("sealing key", key, each.subarray(1, 33)))) {
        throw new Error(`the sealing key of position ${seat} is not its owner's`);
      }
    });
    const numbers = Buffer.concat([le(round, 8), le(buffers, 4)]);
    const ids = (list) => Buffer.concat(list.map((id) => le(id, 4)));
    this.session = digest("session", SUITE, job, numbers, model, policy, params, roster, ids(cohort), ids(committee),
      ...statements);
    if (!message.subarray(2, 34).equals(this.session)) throw new Error("another session");
    this.cohort = cohort; this.committee = committee;
    this.seats = statements.map((each) => each.subarray(1, 33));
    this.position = committee.indexOf(this.id);
    this.publicSeed = digest("public polynomial", job, params);
    this.opening = Buffer.from(message);
  }
  frame(kind, ...parts) { return Buffer.concat([Buffer.from([2, kind]), this.session, ...parts]); }

  upload(vector, entropy) { // the one message of a dealer; `entropy`: 32 bytes, used once
    if (this.uploaded) throw new Error("a second upload in one round");
    this.uploaded = true;
    const { params, session, id } = this, purpose = (name) => sha256(tag(name), entropy);
    const secret = sample(purpose("secret"), N);
    const ciphertext = encrypt(vector, secret, this.publicSeed, purpose("error"), params);
    const shares = share(secret, params, purpose("shares"));
    const ephemeralSecret = purpose("ephemeral"), ephemeral = publicOf("x25519", ephemeralSecret);
    const sealed = Buffer.concat(this.seats.flatMap((seat, position) => seat.length
      ? [seal(shareKey(agree(ephemeralSecret, seat), session, id, 0, position, ephemeral, seat),
        u16(shares[position]), session)] : []));
    const head = Buffer.concat([le(id, 4), le(0, 4)]);
    const R = challenge(digest("proof", session, head, ephemeral, sha256(sealed)), params.columns);
    const proof = u16(R.flatMap((row, i) => shares.slice(0, params.threshold).map((one) =>
      (dot(row, one) + one[params.columns + i]) % P)));
    const what = digest("upload", session, head, ephemeral, sha256(ciphertext), sha256(sealed), sha256(proof));
    return this.frame(UPLOAD, le(0, 4), ephemeral, signed(this.identity, what), le(0, 2), ciphertext, proof, sealed);
  }

  handle(message) { // a committee member's duties: one reply each, the same to the same message
    const name = hex(sha256(message)), before = this.replies.get(name);
    if (before) return before;
    const reply = this.duty(message);
    this.replies.set(name, reply);
    return reply;
  }
  duty(message) {
    const body = message.subarray(34);
    if (!message.subarray(2, 34).equals(this.session)) throw new Error("a message of another session");
    switch (kindOf(message)) {
      case DELIVERY: return this.check(body);
      case PROPOSAL: return this.endorse(body);
      case CERTIFICATE: return this.answer(body);
      default: throw new Error(`a message of kind ${kindOf(message)}`);
    }
  }
  check(body) {
    if (this.held) throw new Error("a second delivery of one sum");
    const { params, session, position } = this, count = body.readUInt32LE(4), row = 168 + params.proofBytes;
    const weights = interpolation(range(1, params.threshold), [position + 1])[0];
    const held = new Map(), dealers = new Set(), complaints = [];
    for (let i = 0; i < count; i++) {
      const one = body.subarray(8 + i * row, 8 + (i + 1) * row), proof = one.subarray(168);
      const head = one.subarray(0, 8), [id, sequence] = [one.readUInt32LE(0), one.readUInt32LE(4)];
      const [ephemeral, cipherHash, sealedHash] = [8, 40, 72].map((at) => one.subarray(at, at + 32));
      const what = digest("upload", session, head, ephemeral, cipherHash, sealedHash, sha256(proof));
      if (dealers.has(id) || sequence !== 0) throw new Error(`dealer ${id} sent two vectors`);
      dealers.add(id);
      if (!this.cohort.includes(id) || !verifies(this.keys.get(id), one.subarray(104, 168), what)) {
        throw new Error(`dealer ${id} did not sign its upload`);
      }
      const start = 8 + count * row + i * params.shareBytes;
      const secret = agree(this.sealing, ephemeral);
      const key = shareKey(secret, session, id, sequence, position, ephemeral, this.seats[position]);
      let values;
      try { values = values16(unseal(key, body.subarray(start, start + params.shareBytes), session)); }
      catch { complaints.push(le(id, 4), Buffer.alloc(32)); continue; }
      const R = challenge(digest("proof", session, head, ephemeral, sealedHash), params.columns);
      const stated = values16(proof);
      const good = values.every((value) => value < P) && R.every((coefficients, j) =>
        (dot(coefficients, values) + values[params.columns + j]) % P ===
        dot(weights, stated.slice(j * params.threshold, (j + 1) * params.threshold)));
      if (good) held.set(id, { row: Buffer.concat([head, what]), values });
      else complaints.push(le(id, 4), key);
    }
    this.held = held;
    return this.frame(CHECKED, body.subarray(0, 4), ...complaints);
  }
  endorse(body) {
    const ids = bits(body.subarray(4), this.params.n).map((place) => this.cohort[place]);
    if (!this.held || this.chosen || ids.length < this.params.minIncluded || !ids.every((id) => this.held.has(id))) {
      throw new Error("a set that is not endorsed");
    }
    this.chosen = ids;
    this.set = digest("set", this.session, body.subarray(0, 4), Buffer.concat(ids.map((id) => this.held.get(id).row)));
    return this.frame(ENDORSEMENT, body.subarray(0, 4), signed(this.identity, digest("endorsement", this.set)));
  }
  answer(body) {
    const { committee } = this.params, size = Math.ceil(committee / 8);
    if (!this.chosen || this.answered) throw new Error("no set was endorsed, or its sum was answered");
    const endorsers = bits(body.subarray(4, 4 + size), committee), what = digest("endorsement", this.set);
    if (endorsers.length < this.params.quorum || !endorsers.every((seat, i) =>
      verifies(this.keys.get(this.committee[seat]), body.subarray(4 + size + 64 * i, 68 + size + 64 * i), what))) {
      throw new Error("no quorum");
    }
    const values = u16(range(0, this.params.columns - 1).map((k) =>
      this.chosen.reduce((sum, id) => sum + this.held.get(id).values[k], 0) % P));
    const answer = digest("answer", this.set, le(this.position, 4), values);
    this.sealing = null; this.held = new Map(); // and it answers nothing else
    this.answered = true;
    return this.frame(ANSWER, body.subarray(0, 4), values, signed(this.identity, answer));
  }
}
export { OPENING };
