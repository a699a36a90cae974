// node agent.mjs FOLDER GRAPH DATA: a device of a fleet, after `fedsys agent join` made FOLDER.
// Synchronous rounds, the wide encoding, committees of everybody, plain SGD; it refuses the rest.
// What it has to remember is in FOLDER: journal.node (rounds) and rosters.node.
// DATA is JSON: x, rows of floats; y, classes.
import { randomBytes } from "node:crypto";
import { closeSync, existsSync, fsyncSync, openSync, readFileSync, writeSync } from "node:fs";
import { connect } from "node:http2";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { be, hex, Keystream, publicOf, sha256, signed, unhex } from "./bytes.mjs";
import { read as readJson } from "./canonical.mjs";
import { Assembler, split } from "./frames.mjs";
import { Ledger, priced, same, statement } from "./ledger.mjs";
import { batchSeed, clip, inRing, keptRows, Noise } from "./local.mjs";
import { read } from "./onnx.mjs";
import { bytesAt, decode, encode, intAt, message } from "./protobuf.mjs";
import { next } from "./rosters.mjs";
import { kindOf, Member, OPENING, prekey, readParams, rosterHash } from "./secure.mjs";
import { train } from "./training.mjs";

const UP = { hello: 1, consent: 2, refusal: 3, answer: 4, countersignature: 5, prekeys: 6, roster: 8 };
const DOWN = { 1: "welcome", 2: "roster", 3: "offer", 4: "invitation", 5: "stage", 6: "outcome", 7: "goodbye", 8: "model",
  12: "lines", 13: "roster_wanted", 14: "notice" };
const CAUSE = { task: 3, cohort: 4, mechanism: 5, participation: 7, roster: 8, terms: 9, training: 10, protocol: 12, ledger: 17 };
const HELD = 8, MOST_MEMBERS = 100, MOST_BYTES = 1 << 28;
const OUTDATED = 2, REVOKED = 3; // a goodbye after which it does not come back
const TERMS = ["job", "name", "task", "options", "task_sha256", "local", "path", "dimension", "example_clip", "plan",
  "seed", "roster_version", "roster_hash", "answer", "graph_sha256", "buffering", "shared", "weight_cap", "kind",
  "questions", "held_out"];
const ASSIGNMENT = ["job", "round", "task", "local", "mechanism", "seed", "terms", "clipping", "shared"];
// Of local training, what differs from these is refused.
const PLAIN = { optimizer: "sgd", optimizer_options: {}, momentum: 0, weight_decay: 0, proximal_mu: 0, gradient_clip: 0,
  schedule: "constant", step_schedule: "constant", warmup_steps: 0, procedure: "", options: {} };
const TAKEN = ["epochs", "batch_size", "learning_rate", "final_factor", "step_final_factor"];
const plain = (local) => Object.entries(local).every(([key, value]) =>
  TAKEN.includes(key) || (key in PLAIN && same(value, PLAIN[key])));

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
    this.signer = unhex(setting("signer"));
    this.identity = file("identity.ed25519");
    const tls = file("tls.pem").toString(), at = tls.indexOf("-----BEGIN CERTIFICATE");
    this.tls = { ca: file("ca.pem"), key: tls.slice(0, at), cert: tls.slice(at) };
    this.journal = join(folder, "journal.node");
    this.rounds = existsSync(this.journal)
      ? readFileSync(this.journal, "utf8").trim().split("\n").map((line) => line.split(" ")) : [];
    const encoded = readFileSync(graph);
    this.graph = { ...read(encoded), sha256: hex(sha256(encoded)) };
    this.data = JSON.parse(readFileSync(data, "utf8"));
    this.pool = new Map(); this.rosters = []; this.jobs = new Map(); this.habits = new Map();
    this.kept = join(folder, "rosters.node");
    if (existsSync(this.kept)) this.news(readFileSync(this.kept, "utf8").trim().split("\n").map(unhex), false);
    this.sent = new Map(); this.instance = randomBytes(16);
  }
  note(job, round, what, ...more) { // durable before it returns
    this.rounds.push([job, String(round), what, ...more]);
    this.append(this.journal, [job, round, what, ...more].join(" "));
  }
  append(path, line) {
    const file = openSync(path, "a", 0o600);
    writeSync(file, `${line}\n`);
    fsyncSync(file);
    closeSync(file);
  }
  noted(job, what) { return this.rounds.filter(([a, , c]) => a === job && c === what); }
  count(job, what, upTo = Infinity) {
    return new Set(this.noted(job, what).map(([, b]) => b).filter((b) => Number(b) <= upTo)).size;
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
    const spent = new Map(), newest = this.rosters.at(-1); // by job, the newest round
    for (const [job, round, what] of this.rounds) if (what === "joined") spent.set(job, Number(round));
    return [UP.hello, encode([[1, 1], [2, 1], [3, this.node], [4, "0.1.0"],
      [5, newest?.version ?? 0], [7, newest ? unhex(newest.hash) : undefined], ...this.keys(HELD).map((each) => [6, each]), [8, this.instance],
      ...[...spent].slice(-32).map(([job, round]) => [9, encode([[1, unhex(job)], [2, round]])])])];
  }
  news(list, fresh = true) { // durable before they are used
    for (const each of list) {
      const fields = decode(each);
      let list;
      try {
        list = next(this.rosters, this.rosterKey, bytesAt(fields, 1), bytesAt(fields, 2));
      } catch (error) {
        throw new Refused("roster", error.message);
      }
      if (fresh) this.append(this.kept, hex(each));
      this.rosters.push({ ...list, raw: each });
    }
  }
  offer(fields) {
    const text = bytesAt(fields, 1), terms = readJson(text, TERMS, ["members"]), { plan } = terms;
    const roster = this.rosters.find((each) => each.version === terms.roster_version);
    require(roster && roster.hash === terms.roster_hash, "roster", "another roster");
    const asked = new Set(terms.members ?? roster.members.map(([node]) => node));
    const members = roster.members.filter(([node]) => asked.has(node)), client = members.findIndex(([node]) => node === this.node);
    require(client >= 0 && members.length === asked.size && members.length === plan.population, "roster", "this device is not on the roster");
    require(terms.graph_sha256 === this.graph.sha256, "task", "another graph");
    require(plan.unit === "client" && plan.encoding === "wide" && !plan.adaptive_clip && plan.participation === 1,
      "mechanism", "a mechanism that is not supported here");
    require(["distributed-gaussian", "none"].includes(plan.mechanism), "mechanism", `mechanism ${plan.mechanism}`);
    require(plan.noise === "per-client", "mechanism", "noise that devices do not add");
    require(terms.kind === "train" && !terms.evaluate_every && !terms.shared && !terms.weight_cap && plain(terms.local), "terms",
      "questions, shared numbers, weights or a local procedure");
    require(terms.local.batch_size <= this.graph.batch, "task", `batches of ${terms.local.batch_size}`);
    require(terms.suite === undefined, "terms", "a suite with ML-KEM-768");
    require(terms.buffering === null && plan.cap <= MOST_MEMBERS, "terms", "buffered rounds or drawn committees");
    require(!this.noted(terms.job, "disputed").length, "ledger", "its ledger contradicted itself");
    const digest = sha256(Buffer.from("fedsys terms v1\0"), text);
    const [before] = this.noted(terms.job, "agreed");
    for (const later of before ? [] : this.rosters.filter(({ version }) => version > roster.version)) {
      const kept = new Set(later.members.map(([node]) => node));
      require(members.every(([node]) => kept.has(node)) &&
        Math.min(later.colluders, members.length) <= Math.min(roster.colluders, members.length),
        "roster", `roster ${later.version} removed a member, or expects more colluders`);
    }
    require(!before || before[3] === hex(digest), "terms", "other terms than were agreed to under this name");
    if (!before) this.note(terms.job, 0, "agreed", hex(digest)); // before the consent leaves
    const ledger = this.jobs.get(terms.job)?.ledger ?? new Ledger(terms.job, terms, this.signer);
    this.jobs.set(terms.job, { terms, digest, client, members, colluders: roster.colluders, ledger });
    return [UP.consent, encode([[1, unhex(terms.job)], [2, digest],
      ...this.refill(intAt(fields, 2)).map((each) => [3, each]), [5, ledger.lines]])];
  }
  invite(fields) {
    const job = hex(bytesAt(fields, 1)), round = intAt(fields, 2), head = bytesAt(fields, 3);
    const agreed = this.jobs.get(job), { model } = this;
    require(agreed && model && model.job === job && model.round === round, "protocol", "no terms, or no model");
    const { terms, digest, client, members, colluders } = agreed, assignment = readJson(head, ASSIGNMENT);
    require(assignment.terms === hex(digest) && assignment.job === job && assignment.round === round &&
      same(assignment.local, terms.local) && assignment.seed === terms.seed && assignment.clipping === null &&
      model.weights.length === 4 * terms.dimension, "terms", "another assignment than was agreed to");
    const event = assignment.mechanism;
    require(priced(event, terms.plan), "terms", "another event than was agreed to");
    require(!this.noted(job, "disputed").length, "ledger", "its ledger contradicted itself");
    const ids = new Map(members.map(([, key], k) => [k, unhex(key)])), announced = bytesAt(fields, 4);
    const params = readParams(announced);
    require(params.n <= terms.plan.cap && params.minIncluded >= Math.max(2, terms.plan.min_survivors) &&
      params.colluders >= Math.min(colluders, params.n - 2) && params.dimension === terms.plan.dimension &&
      params.modulusBits === event.modulus_bits, "cohort", "parameters that do not suit the plan and the roster");
    require(round <= terms.plan.rounds && this.count(job, "joined") < round, "participation", "asked too often");
    require(!this.rounds.some(([a, b]) => a === job && Number(b) >= round), "participation", "a round that is over");
    this.note(job, round, "joined"); // spent, from here on
    this.sent.set(`${job} ${round}`, { weights: hex(sha256(model.weights)), event, nonce: randomBytes(16) });
    this.round = { job, round, terms, client, event, weights: model.weights,
      member: new Member({ id: client, identity: this.identity, keys: ids, sealing: null, agreed: {
        job: unhex(job), round, model: sha256(Buffer.from("fedsys assignment v1\0"), be(head.length, 8), head, model.weights),
        params: announced, roster: rosterHash(ids, colluders) } }) };
    return this.stage(decode(bytesAt(fields, 5)));
  }
  async stage(fields) {
    const current = this.round, asked = bytesAt(fields, 4), round = intAt(fields, 2);
    require(current && hex(bytesAt(fields, 1)) === current.job && round === current.round, "protocol", "another round");
    let reply, nonce;
    if (kindOf(asked) === OPENING) {
      nonce = this.sent.get(`${current.job} ${round}`).nonce;
      current.member.open(asked);
      if (!current.reply) { // the same opening again gets the same bytes again
        const seat = hex(current.member.seats[current.member.position]);
        current.member.sealing = this.pool.get(seat);
        this.pool.delete(seat);
        current.reply = this.upload(current, intAt(fields, 5));
      }
      reply = await current.reply;
    } else reply = current.member.handle(asked);
    return [UP.answer, encode([[1, bytesAt(fields, 1)], [2, round], [3, intAt(fields, 3)], [4, reply], [5, nonce]])];
  }
  async upload({ job, round, terms, client, event, weights, member }, milliseconds) {
    const asked = performance.now(), { x, y } = this.data, most = terms.plan.max_participations;
    const start = Float32Array.from({ length: terms.dimension }, (_, i) => weights.readFloatLE(4 * i));
    // Contributed as often as agreed: zeros and noise. A refusal would be visible.
    const done = most !== null && this.count(job, "joined", round - 1) >= most;
    const update = done ? new Float32Array(terms.dimension) : train(this.graph, { x, y, weights: start, local: terms.local,
      seed: batchSeed(BigInt(terms.seed), round, client), rows: keptRows(y.length, terms.held_out) }).update;
    const values = clip(update, event.clip), stream = new Keystream(randomBytes(32));
    const noise = event.mechanism === "none" ? values.map(() => 0)
      : new Noise(Math.sqrt(event.share_variance)).draws(values.length, (count) => stream.read(count));
    const vector = values.map((value, i) => value + noise[i]);
    const message = member.upload(inRing(vector, event.modulus_bits), randomBytes(32));
    this.note(job, round, "uploaded");
    await sleep(this.leaves(job, terms, performance.now() - asked, milliseconds));
    console.log(`round ${round}: uploaded`);
    return message;
  }
  leaves(job, terms, elapsed, milliseconds) { // DEVICE.md, "When an upload leaves": how long to wait still
    if (terms.answer === "at-once") return 0;
    const habit = this.habits.get(job) ?? { lately: [], deadline: 0 };
    this.habits.set(job, habit);
    habit.deadline = Math.max(habit.deadline, milliseconds);
    const late = 0.9 * habit.deadline;
    if (terms.answer === "at-deadline" && elapsed <= late) return late - elapsed;
    const unit = 50 + 1e3 * 6e-9 * terms.dimension * terms.local.epochs * 256;
    habit.lately = [...habit.lately.slice(-3), Math.max(0, Math.ceil(Math.log2(elapsed / unit)))];
    return unit * 2 ** Math.max(...habit.lately) - elapsed;
  }
  lines(fields) {
    const job = hex(bytesAt(fields, 1)), agreed = this.jobs.get(job);
    if (!agreed) return null;
    try {
      agreed.ledger.take(bytesAt(fields, 2), (round) => this.sent.get(`${job} ${round}`),
        (round) => this.noted(job, "signed").find(([, b]) => Number(b) === round)?.[3]);
    } catch (error) {
      this.note(job, agreed.ledger.rounds, "disputed");
      throw new Refused("ledger", error.message);
    }
    return null;
  }
  outcome(fields) {
    const fresh = this.refill(intAt(fields, 5)), said = this.statement(fields);
    this.round = null;
    if (!said) return fresh.length ? [UP.prekeys, encode(fresh.map((each) => [1, each]))] : null;
    console.log(`round ${intAt(fields, 2)}: countersigned`);
    return [UP.countersignature, Buffer.concat([said, encode(fresh.map((each) => [12, each]))])];
  }
  statement(fields) { // what this device says about a round that is over: once, and durably
    const job = bytesAt(fields, 1), name = hex(job), round = intAt(fields, 2), head = bytesAt(fields, 4);
    const agreed = this.jobs.get(name), sent = this.sent.get(`${name} ${round}`), before = this.noted(name, "signed").at(-1);
    const dispute = (holds, text) => { if (!holds) this.note(name, round, "disputed"); require(holds, "ledger", text); };
    if (before && round <= Number(before[1])) {
      require(round === Number(before[1]), "ledger", `round ${round} comes after ${before[1]}, which is signed`);
      dispute(before[3] === hex(head), `round ${round} has a second outcome`);
      return unhex(before[4]);
    }
    if (!agreed || !sent || head.length !== 32) return null;
    const { ledger } = agreed, committed = intAt(fields, 3) === 1;
    if (ledger.head !== hex(head)) return null; // its lines did not come
    dispute(ledger.rounds === round && ledger.kind === (committed ? "commit" : "abort"), `round ${round} has another outcome`);
    const uploaded = this.noted(name, "uploaded").some(([, b]) => Number(b) === round);
    const said = { job, terms: agreed.digest, round, head, previous: before ? unhex(before[3]) : Buffer.alloc(32),
      weights: unhex(sent.weights), uploaded, nonce: uploaded ? sent.nonce : Buffer.alloc(16),
      invitations: this.count(name, "joined", round), uploads: this.count(name, "uploaded", round) };
    const encoded = encode([[1, job], [2, said.terms], [3, round], [4, head], [5, said.previous], [6, said.weights],
      [7, uploaded], [8, said.nonce], [9, said.invitations], [10, said.uploads],
      [11, signed(this.identity, statement(said))]]);
    this.note(name, round, "signed", hex(head), hex(encoded));
    this.sent.delete(`${name} ${round}`);
    return encoded;
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
        case "lines": return this.lines(fields);
        case "roster_wanted":
          return [UP.roster, encode(this.rosters.filter(({ version }) => version > intAt(fields, 1))
            .map((each) => [1, each.raw]))];
        case "notice": console.log(`notice: ${bytesAt(fields, 1)}`); return null;
        case "goodbye":
          console.log(`goodbye: ${bytesAt(fields, 2)}`);
          this.final = [OUTDATED, REVOKED].includes(intAt(fields, 1));
          return null;
        default: throw new Error(`a message of kind ${field}`);
      }
    } catch (error) { // the reason stays here; the coordinator learns the cause
      console.log(`refused: ${error instanceof Refused ? error.message : error.stack}`);
      const [job, round] = kind === "offer" ? [unhex(JSON.parse(bytesAt(fields, 1).toString()).job), 0]
        : [bytesAt(fields, 1), kind === "lines" ? 0 : intAt(fields, 2)];
      return [UP.refusal, encode([[1, job], [2, round], [5, error.cause ?? CAUSE.training]])];
    }
  }
}

function session(device, ended) {
  const client = connect(`https://${device.coordinator}`, device.tls);
  const stream = client.request({ ":method": "POST", ":path": "/fedsys.v1.Fleet/Session",
    "content-type": "application/grpc", te: "trailers" }, { endStream: false });
  const assembler = new Assembler(MOST_BYTES);
  let parcel = 0, rest = Buffer.alloc(0), work = Promise.resolve(), open = true;
  const send = ([field, bytes]) => {
    if (!open) return;
    for (const frame of split(parcel, encode([[field, message(bytes)]]))) {
      stream.write(Buffer.concat([Buffer.from([0]), be(frame.length, 4), frame]));
    }
    parcel++;
  };
  const end = (why) => {
    if (!open) return;
    open = false;
    if (why) console.log(why);
    client.destroy();
    work.then(() => ended(parcel > 1)); // what is being answered is noted first
  };
  stream.on("data", (data) => {
    rest = Buffer.concat([rest, data]);
    try {
      while (open && rest.length >= 5 && rest.length >= 5 + rest.readUInt32BE(1)) {
        const size = rest.readUInt32BE(1), whole = assembler.add(rest.subarray(5, 5 + size));
        rest = rest.subarray(5 + size);
        if (whole) work = work.then(() => device.handle(whole)).then((answer) => answer && send(answer));
      }
    } catch (error) { end(error.message); }
  });
  for (const each of [client, stream]) each.on("error", (error) => end(error.message));
  stream.on("trailers", (found) => found["grpc-status"] !== "0" && console.log(found["grpc-message"]));
  stream.on("close", () => end(""));
  send(device.hello());
}

async function run(device) { // a lost session is opened again, later after each failure
  process.on("SIGTERM", () => process.exit(0));
  for (let wait = 500; !device.final;) {
    const worked = await new Promise((ended) => session(device, ended));
    wait = worked ? 500 : Math.min(2 * wait, 60000);
    if (!device.final) await sleep(Math.random() * wait);
  }
}

run(new Device(...process.argv.slice(2)));
