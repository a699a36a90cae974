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
import { Member, prekey, rosterHash } from "./secure.mjs";
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
  const member = new Member({ id: given.id, identity, keys, sealing, agreed: {
    job: unhex(given.job), round: given.round, model: unhex(given.model), params: unhex(given.params),
    roster: unhex(given.roster_hash) } });
  for (const { kind, message, reply } of given.steps) {
    let found;
    if (kind === "OPENING") {
      member.open(unhex(message));
      found = member.upload(given.vector.map(BigInt), unhex(given.entropy));
    } else found = member.handle(unhex(message));
    assert.equal(reply.startsWith("sha256") ? `sha256 ${hex(sha256(found))}` : hex(found), reply, kind);
  }
}

const CHECKS = { frames, canonical, rosters, agreement, ledger, batches: checkBatches, held_out, training, clipping, noise, adding, round };
assert.deepEqual(Object.keys(vectors).sort(), Object.keys(CHECKS).sort());
for (const [name, check] of Object.entries(CHECKS)) {
  const began = performance.now();
  check(vectors[name], vectors.agreement);
  console.log(`${name} agrees (${Math.round(performance.now() - began)} ms)`);
}
