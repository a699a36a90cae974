// node agent.mjs FOLDER GRAPH DATA: a device of a fleet, after `fedsys agent join` made FOLDER.
// Synchronous rounds, the wide encoding, committees of everybody, plain SGD; it refuses the rest.
// DATA is JSON: x, rows of floats; y, classes.
import { randomBytes } from "node:crypto";
import { closeSync, existsSync, fsyncSync, openSync, readFileSync, writeSync } from "node:fs";
import { connect } from "node:http2";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { be, hex, number, publicOf, sha256, signed, unhex, verifies } from "./bytes.mjs";
import { Assembler, split } from "./frames.mjs";
import { batchSeed, clip, inRing, Noise } from "./local.mjs";
import { read } from "./onnx.mjs";
import { bytesAt, decode, encode, intAt, message } from "./protobuf.mjs";
import { kindOf, Member, OPENING, prekey, readParams, rosterHash } from "./secure.mjs";
import { train } from "./training.mjs";

const UP = { hello: 1, consent: 2, refusal: 3, answer: 4, countersignature: 5, prekeys: 6 };
const DOWN = { 1: "welcome", 2: "roster", 3: "offer", 4: "invitation", 5: "stage", 6: "outcome", 7: "goodbye", 8: "model" };
const CAUSE = { task: 3, cohort: 4, mechanism: 5, participation: 7, roster: 8, terms: 9, training: 10, protocol: 12 };
const HELD = 8, MOST_MEMBERS = 100;

class Refused extends Error {
  constructor(cause, text) { super(text); this.cause = CAUSE[cause]; }
}
const require = (holds, cause, text) => { if (!holds) throw new Refused(cause, text); };

class Device {
  constructor(folder, graph, data) {
    const file = (name) => readFileSync(join(folder, name));
    const settings = file("agent.toml").toString();
    const setting = (name) => settings.match(new RegExp(`^${name} = "?([^"\n]*)"?$`, "m"))[1];
    this.node = Number(setting("node"));
    this.coordinator = setting("coordinator");
    this.rosterKey = unhex(setting("roster_key"));
    this.identity = file("identity.ed25519");
    const tls = file("tls.pem").toString(), at = tls.indexOf("-----BEGIN CERTIFICATE");
    this.tls = { ca: file("ca.pem"), key: tls.slice(0, at), cert: tls.slice(at) };
    this.journal = join(folder, "journal.node");
    this.rounds = existsSync(this.journal)
      ? readFileSync(this.journal, "utf8").trim().split("\n").map((line) => line.split(" ")) : [];
    const encoded = readFileSync(graph);
    this.graph = { ...read(encoded), sha256: hex(sha256(encoded)) };
    this.data = JSON.parse(readFileSync(data, "utf8"));
    this.pool = new Map(); this.rosters = []; this.jobs = new Map();
  }
  note(job, round, what) { // durable before it returns
    this.rounds.push([job, String(round), what]);
    const file = openSync(this.journal, "a", 0o600);
    writeSync(file, `${job} ${round} ${what}\n`);
    fsyncSync(file);
    closeSync(file);
  }
  count(job, what, upTo = Infinity) {
    return new Set(this.rounds.filter(([a, b, c]) => a === job && c === what && Number(b) <= upTo).map(([, b]) => b)).size;
  }
  keys(count) { // fresh single-use sealing keys
    return Array.from({ length: count }, () => {
      const secret = randomBytes(32);
      this.pool.set(hex(publicOf("x25519", secret)), secret);
      return prekey(this.identity, secret);
    });
  }
  refill(held) { return held <= HELD / 2 ? this.keys(HELD - held) : []; }

  hello() {
    return [UP.hello, encode([[1, 1], [2, 1], [3, this.node], [4, "0.1.0"],
      ...this.keys(HELD).map((each) => [6, each])])];
  }
  news(list) {
    for (const each of list) {
      const fields = decode(each), statement = bytesAt(fields, 1), body = JSON.parse(statement.toString());
      const before = this.rosters.at(-1);
      require(verifies(this.rosterKey, bytesAt(fields, 2), Buffer.concat([Buffer.from("fedsys roster v1\0"), statement])),
        "roster", "a roster that its authority did not sign");
      require(body.version === this.rosters.length + 1 && body.previous === (before ? before.hash : ""),
        "roster", "a roster that does not follow the last");
      this.rosters.push({ ...body, hash: hex(sha256(statement)) });
    }
  }
  offer(fields) {
    const text = bytesAt(fields, 1), terms = JSON.parse(text.toString()), { plan } = terms;
    const roster = this.rosters.find((each) => each.version === terms.roster_version);
    require(roster && roster.hash === terms.roster_hash, "roster", "another roster");
    const nodes = roster.members.map(([node]) => node), client = nodes.indexOf(this.node);
    require(client >= 0 && nodes.length === plan.population, "roster", "this device is not on the roster");
    require(terms.graph_sha256 === this.graph.sha256, "task", "another graph");
    require(plan.unit === "client" && plan.encoding === "wide" && !plan.adaptive_clip && plan.participation === 1,
      "mechanism", "a mechanism that is not supported here");
    require(["distributed-gaussian", "none"].includes(plan.mechanism), "mechanism", `mechanism ${plan.mechanism}`);
    require(terms.buffering === null && plan.cap <= MOST_MEMBERS, "terms", "buffered rounds or drawn committees");
    const digest = sha256(Buffer.from("fedsys terms v1\0"), text);
    this.jobs.set(terms.job, { terms, digest, client, roster });
    return [UP.consent, encode([[1, unhex(terms.job)], [2, digest],
      ...this.refill(intAt(fields, 2)).map((each) => [3, each])])];
  }
  invite(fields) {
    const job = hex(bytesAt(fields, 1)), round = intAt(fields, 2), head = bytesAt(fields, 3);
    const agreed = this.jobs.get(job), { model } = this;
    require(agreed && model && model.job === job && model.round === round, "protocol", "no terms, or no model");
    const { terms, digest, client, roster } = agreed, assignment = JSON.parse(head.toString());
    const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
    require(assignment.terms === hex(digest) && assignment.job === job && assignment.round === round &&
      same(assignment.local, terms.local) && assignment.seed === terms.seed && assignment.clipping === null &&
      model.weights.length === 4 * terms.dimension, "terms", "another assignment than was agreed to");
    const event = assignment.mechanism;
    require(event.mechanism === terms.plan.mechanism && event.clip === terms.plan.clip &&
      event.noise_multiplier === terms.plan.noise_multiplier && event.cap === terms.plan.cap &&
      event.modulus_bits === terms.plan.modulus_bits, "terms", "another event than was agreed to");
    const ids = new Map(roster.members.map(([, key], k) => [k, unhex(key)])), announced = bytesAt(fields, 4);
    const params = readParams(announced);
    require(params.n <= terms.plan.cap && params.minIncluded >= Math.max(2, terms.plan.min_survivors), "cohort", "cohort");
    require(round <= terms.plan.rounds && this.count(job, "joined") < round, "participation", "asked too often");
    require(!this.rounds.some(([a, b]) => a === job && Number(b) >= round), "participation", "a round that is over");
    this.note(job, round, "joined"); // spent, from here on
    this.round = { job, round, terms, client, event, weights: model.weights,
      member: new Member({ id: client, identity: this.identity, keys: ids, sealing: null, agreed: {
        job: unhex(job), round, model: sha256(Buffer.from("fedsys assignment v1\0"), be(head.length, 8), head, model.weights),
        params: announced, roster: rosterHash(ids, roster.colluders) } }) };
    return this.stage(decode(bytesAt(fields, 5)));
  }
  async stage(fields) {
    const current = this.round, asked = bytesAt(fields, 4), round = intAt(fields, 2);
    require(current && hex(bytesAt(fields, 1)) === current.job && round === current.round, "protocol", "another round");
    let reply;
    if (kindOf(asked) === OPENING) {
      current.member.open(asked);
      const seat = hex(current.member.seats[current.member.position]);
      current.member.sealing = this.pool.get(seat);
      this.pool.delete(seat);
      reply = await this.upload(current);
    } else reply = current.member.handle(asked);
    return [UP.answer, encode([[1, bytesAt(fields, 1)], [2, round], [3, intAt(fields, 3)], [4, reply]])];
  }
  async upload({ job, round, terms, client, event, weights, member }) {
    const began = performance.now(), { x, y } = this.data;
    const start = Float32Array.from({ length: terms.dimension }, (_, i) => weights.readFloatLE(4 * i));
    const { update } = train(this.graph, { x: x.flat(), y, weights: start, local: terms.local,
      seed: batchSeed(BigInt(terms.seed), round, client), size: terms.local.batch_size });
    const values = clip(update, event.clip), noise = new Noise(Math.sqrt(event.share_variance) || 1);
    const vector = event.mechanism === "none" ? values : values.map((value) =>
      value + noise.draw(number(randomBytes(8)), () => randomBytes(120)));
    const message = member.upload(inRing(vector, event.modulus_bits), randomBytes(32));
    this.note(job, round, "uploaded");
    const unit = 50 + 1e3 * 6e-9 * terms.dimension * terms.local.epochs * 256; // milliseconds
    const bucket = Math.max(0, Math.ceil(Math.log2((performance.now() - began) / unit)));
    if (terms.answer !== "at-once") await sleep(unit * 2 ** bucket - (performance.now() - began));
    console.log(`round ${round}: uploaded`);
    return message;
  }
  outcome(fields) {
    const job = bytesAt(fields, 1), round = intAt(fields, 2), head = bytesAt(fields, 4);
    const fresh = this.refill(intAt(fields, 5));
    this.round = null;
    const uploaded = this.rounds.some(([a, b, c]) => a === hex(job) && Number(b) === round && c === "uploaded");
    if (!intAt(fields, 3) || !uploaded || head.length !== 32) {
      return fresh.length ? [UP.prekeys, encode(fresh.map((each) => [1, each]))] : null;
    }
    const count = this.count(hex(job), "uploaded", round);
    const what = Buffer.concat([Buffer.from("fedsys countersignature v1\0"), be(32, 4), job, be(round, 4), be(32, 4), head,
      be(count, 4)]);
    console.log(`round ${round}: countersigned`);
    return [UP.countersignature, encode([[1, job], [2, round], [3, head], [4, count], [5, signed(this.identity, what)],
      ...fresh.map((each) => [6, each])])];
  }
  async handle(down) { // one message of the coordinator; returns the answer's field and bytes, or null
    const [[field, [content]]] = decode(down), kind = DOWN[field], fields = decode(content);
    try {
      switch (kind) {
        case "welcome": this.news(fields.get(2) ?? []); console.log("connected"); return null;
        case "roster": this.news(fields.get(1) ?? []); return null;
        case "offer": return this.offer(fields);
        case "model":
          this.model = { job: hex(bytesAt(fields, 1)), round: intAt(fields, 2), weights: Buffer.from(bytesAt(fields, 3)) };
          return null;
        case "invitation": return await this.invite(fields);
        case "stage": return await this.stage(fields);
        case "outcome": return this.outcome(fields);
        case "goodbye": console.log(`goodbye: ${bytesAt(fields, 2)}`); return null;
        default: throw new Error(`a message of kind ${field}`);
      }
    } catch (error) { // the reason stays here; the coordinator learns the cause
      console.log(`refused: ${error instanceof Refused ? error.message : error.stack}`);
      const [job, round] = kind === "offer" ? [unhex(JSON.parse(bytesAt(fields, 1).toString()).job), 0]
        : [bytesAt(fields, 1), intAt(fields, 2)];
      return [UP.refusal, encode([[1, job], [2, round], [5, error.cause ?? CAUSE.training]])];
    }
  }
}

function run(device) {
  const session = connect(`https://${device.coordinator}`, device.tls);
  const stream = session.request({ ":method": "POST", ":path": "/fedsys.v1.Fleet/Session",
    "content-type": "application/grpc", te: "trailers" }, { endStream: false });
  const assembler = new Assembler();
  let parcel = 0, rest = Buffer.alloc(0), work = Promise.resolve();
  const send = ([field, bytes]) => {
    for (const frame of split(parcel, encode([[field, message(bytes)]]))) {
      stream.write(Buffer.concat([Buffer.from([0]), be(frame.length, 4), frame]));
    }
    parcel++;
  };
  stream.on("data", (data) => {
    rest = Buffer.concat([rest, data]);
    while (rest.length >= 5 && rest.length >= 5 + rest.readUInt32BE(1)) {
      const size = rest.readUInt32BE(1), whole = assembler.add(rest.subarray(5, 5 + size));
      rest = rest.subarray(5 + size);
      if (whole) work = work.then(() => device.handle(whole)).then((answer) => answer && send(answer));
    }
  });
  for (const each of [session, stream]) each.on("error", (error) => { console.log(error.message); process.exit(1); });
  stream.on("trailers", (found) => found["grpc-status"] !== "0" && console.log(found["grpc-message"]));
  stream.on("close", () => process.exit(0));
  process.on("SIGTERM", () => process.exit(0));
  send(device.hello());
}

run(new Device(...process.argv.slice(2)));
