// node tests/device/node/check.mjs tests/vectors/device/vectors.json
// Reproduces the vectors; prints what was compared, and fails at the first difference.
import { strict as assert } from "node:assert";
import { readFileSync } from "node:fs";
import { hex, Keystream, sha256, unhex } from "./bytes.mjs";
import { read as readJson } from "./canonical.mjs";
import { Assembler, split } from "./frames.mjs";
import { Ledger, statement } from "./ledger.mjs";
import { batches, batchSeed, clip, inRing, keptRows, Noise, Table } from "./local.mjs";
import { read } from "./onnx.mjs";
import { next } from "./rosters.mjs";
import { Member, prekey, readParams, rosterHash } from "./secure.mjs";
import { train } from "./training.mjs";

const vectors = JSON.parse(readFileSync(process.argv[2], "utf8"));
const floats = (text) => {
  const raw = unhex(text);
  return Float32Array.from({ length: raw.length / 4 }, (_, i) => raw.readFloatLE(4 * i));
};

function frames({ parcel, message, chunk, frames }) {
  assert.deepEqual([...split(parcel, unhex(message), chunk)].map(hex), frames);
  const assembler = new Assembler();
  assembler.parcel = parcel;
  assert.equal(hex(frames.map((each) => assembler.add(unhex(each))).at(-1)), message);
}
function canonical({ keys, read: good, refused }) {
  for (const text of good) readJson(unhex(text), keys);
  for (const text of refused) assert.throws(() => readJson(unhex(text), keys), `${unhex(text)} is taken`);
}
function rosters({ key, accepted, first, refused }) {
  const after = (held, each) => next(held, unhex(key), Buffer.from(each.statement), unhex(each.signature));
  const held = [];
  for (const each of accepted) {
    held.push(after(held, each));
    assert.deepEqual([held.at(-1).version, held.at(-1).hash], [each.version, each.hash]);
  }
  const later = [];
  for (const each of [first, ...accepted.slice(first.version)]) later.push(after(later, each));
  assert.equal(later.at(-1).hash, held.at(-1).hash);
  for (const [name, { holds, ...each }] of Object.entries(refused))
    assert.throws(() => after(held.slice(0, holds), each), Error, `${name} is taken`);
}
function held_out({ rows, held_out: fraction, trained }) {
  assert.deepEqual(keptRows(rows, fraction), trained);
}
function agreement({ terms, terms_digest, head, weights, assignment_digest }) {
  assert.equal(hex(sha256(Buffer.from("fedsys terms v1\0"), unhex(terms))), terms_digest);
  const length = Buffer.alloc(8);
  length.writeBigUInt64BE(BigInt(head.length / 2));
  assert.equal(hex(sha256(Buffer.from("fedsys assignment v1\0"), length, unhex(head), unhex(weights))),
    assignment_digest);
}
function ledger(given, { terms, terms_digest }) {
  const agreed = JSON.parse(unhex(terms).toString()), { round, event, weights } = given;
  const taken = (text) => {
    const found = new Ledger(agreed.job, agreed, unhex(given.signer));
    found.take(Buffer.from(text, "latin1"), (at) => (at === round ? { event, weights } : undefined), () => undefined);
    return found;
  };
  const found = taken(given.lines);
  assert.deepEqual([found.head, found.rounds, found.kind], [given.head, round, "abort"]);
  for (const [name, text] of Object.entries(given.wrong)) assert.throws(() => taken(text), Error, name);
  assert.equal(hex(statement({ job: unhex(agreed.job), terms: unhex(terms_digest), round, head: unhex(given.head),
    previous: unhex(given.previous), weights: unhex(weights), uploaded: true, nonce: unhex(given.nonce),
    invitations: given.invitations, uploads: given.uploads })), given.signed);
}
function checkBatches(all) {
  for (const each of all) {
    const seed = batchSeed(BigInt(each.seed), each.round, each.client);
    assert.equal(String(seed), each.batch_seed);
    assert.deepEqual([...batches(each.rows, seed, each)], each.batches);
  }
}
function training({ graph, local, x, y, seed, weights, update, losses, tolerance }) {
  const flat = floats(x), width = flat.length / y.length;
  const rows = y.map((_, i) => flat.subarray(i * width, (i + 1) * width));
  const found = train(read(unhex(graph)), { x: rows, y, weights: floats(weights), seed: BigInt(seed), local });
  const wanted = floats(update);
  assert.ok(found.update.every((value, i) => Math.abs(value - wanted[i]) <= tolerance));
  assert.ok(found.losses.every((value, i) => Math.abs(value - losses[i]) <= tolerance));
}
function clipping(all) {
  for (const { update, clip: bound, integers, bits, ring } of all) {
    const found = clip(floats(update), bound);
    assert.deepEqual(found, integers);
    assert.deepEqual(inRing(found, bits).map(Number), ring);
  }
}
function noise(all) {
  for (const { sigma, key, drawn, settled } of all) {
    const stream = new Keystream(unhex(key));
    assert.deepEqual(new Noise(sigma).draws(drawn.length, (count) => stream.read(count)), drawn);
    const table = new Table(sigma);
    for (const [word, further, k] of settled) {
      let asked = 0;
      assert.equal(table.draw(BigInt(`0x${word}`), () => { asked++; return unhex(further); }), k, `${sigma} ${word}`);
      assert.equal(asked, 1);
    }
  }
}
function adding({ bits, values, noise, sum }) {
  assert.deepEqual(inRing(values.map((value, i) => value + noise[i]), bits).map(Number), sum);
}
function round(given) {
  const keys = new Map(Object.entries(given.roster).map(([id, key]) => [Number(id), unhex(key)]));
  assert.equal(hex(rosterHash(keys, null)), given.roster_hash);
  const identity = unhex(given.identity), sealing = unhex(given.sealing);
  assert.equal(hex(prekey(identity, sealing)), given.prekey);
  const made = () => new Member({ id: given.id, identity, keys, sealing, agreed: {
    job: unhex(given.job), round: given.round, model: unhex(given.model), params: unhex(given.params),
    roster: unhex(given.roster_hash) } });
  const member = made();
  for (const { kind, message, reply } of given.steps) {
    let found;
    const other = changed(message, -1);
    if (kind === "OPENING") {
      refusedOpenings(given, message, made);
      member.open(unhex(message));
      member.open(unhex(message)); // the same again says nothing new
      assert.throws(() => member.open(other), /second opening/);
      found = member.upload(given.vector.map(BigInt), unhex(given.entropy));
      assert.throws(() => member.upload(given.vector.map(BigInt), unhex(given.entropy)), /second upload/);
    } else {
      found = member.handle(unhex(message));
      assert.deepEqual(member.handle(unhex(message)), found);
      const refusal = { DELIVERY: /second delivery/, PROPOSAL: /not endorsed/, CERTIFICATE: /was answered/ }[kind];
      assert.throws(() => member.handle(other), refusal, kind);
    }
    assert.equal(reply.startsWith("sha256") ? `sha256 ${hex(sha256(found))}` : hex(found), reply, kind);
  }
  refusedParams(unhex(given.params));
}
function changed(text, at, byte = undefined) { // one byte of it
  const bytes = unhex(text), place = at < 0 ? bytes.length + at : at;
  bytes[place] = byte ?? bytes[place] ^ 1;
  return bytes;
}
function refusedParams(good) {
  const { n, committee, colluders, threshold, scaleBits } = readParams(good);
  const least = Math.floor((committee + colluders) / 2) + 1, refused = { // by name: where it is, and values
    n: [0, 1, 10_001], modulusBits: [6, 1, 41], committee: [7, 1, n + 1], colluders: [9, committee], quorum: [11, least - 1, committee + 1],
    threshold: [13, 1, committee + 1], packing: [15, 0, threshold - colluders + 1, threshold], errors: [17, committee],
    minIncluded: [19, colluders + 1, n + 1], logQ: [22, 54], suite: [25, 2], scaleBits: [24, scaleBits - 2, 53] };
  for (const [name, [at, ...values]] of Object.entries(refused)) for (const value of values) {
    const bytes = Buffer.from(good);
    if (["modulusBits", "logQ", "suite", "scaleBits"].includes(name)) bytes[at] = value;
    else bytes.writeUInt16LE(value, at);
    assert.throws(() => readParams(bytes), /: from/, `${name} = ${value} is taken`);
  }
  assert.throws(() => readParams(good.subarray(1)), Error);
}
function refusedOpenings({ params, job, model }, message, made) {
  const cohort = 34 + 8 + 4 + 32 + 26 + 3 + unhex(job).length + unhex(model).length, seat = 4 + 1 + 97;
  const first = cohort + 4 * readParams(unhex(params)).n + 5; // the first position's statement
  const copied = unhex(message);
  copied.copy(copied, first + seat, first, first + 97);
  const zero = unhex(message).fill(0, first + 1, first + 33);
  for (const [bytes, why] of [[copied, /two positions/], [zero, /low order/], [changed(message, first, 2), /another suite/],
    [Buffer.concat([unhex(message), Buffer.alloc(1)]), /does not fill/], [changed(message, cohort, 200), /invited/]])
    assert.throws(() => made().open(bytes), why);
}

const CHECKS = { frames, canonical, rosters, agreement, ledger, batches: checkBatches, held_out, training, clipping, noise, adding, round };
assert.deepEqual(Object.keys(vectors).sort(), Object.keys(CHECKS).sort());
for (const [name, check] of Object.entries(CHECKS)) {
  const began = performance.now();
  check(vectors[name], vectors.agreement);
  console.log(`${name} agrees (${Math.round(performance.now() - began)} ms)`);
}
