// DEVICE.md, "Countersignature": the job's ledger as far as it was checked, and what is signed of it.
import { read as readJson } from "./canonical.mjs";
import { be, hex, sha256, unhex, verifies } from "./bytes.mjs";

const LINE = /^\{"body":(\{.*\})(,"hash":"([0-9a-f]{64})")(,"kind":"([a-z]+)","prev_hash":"([0-9a-f]{64})","seq":(\d+)),"signature":"([0-9a-f]{128})"\}$/;
const NOTHING = "0".repeat(64), MOST_BYTES = 2 ** 21;
const written = (value) => JSON.stringify(value, (_, each) => (typeof each === "bigint" ? `${each}` : each));
export const same = (a, b) => written(a) === written(b);
export const priced = (event, plan) => event.mechanism === plan.mechanism && event.clip === plan.clip &&
  event.noise_multiplier === plan.noise_multiplier && event.cap === plan.cap && event.modulus_bits === plan.modulus_bits;

export class Ledger {
  constructor(job, terms, signer) {
    this.job = job; this.terms = terms; this.signer = signer;
    this.lines = this.rounds = 0;
    this.link = this.head = NOTHING;
    this.open = false; this.kind = this.model = "";
  }
  take(raw, sent, signed) { // `sent`: by round, what this device was told; `signed`: the head by round
    const text = raw.toString("latin1");
    if (raw.length > MOST_BYTES || !text.endsWith("\n")) throw new Error("no lines of a ledger");
    for (const each of text.slice(0, -1).split("\n")) this.line(each, sent, signed);
  }
  line(text, sent, signed) {
    const found = LINE.exec(text);
    if (!found) throw new Error("a line that is not canonical");
    const [, body, , hash, rest, kind, before, seq, signature] = found, link = hex(sha256(Buffer.from(text, "latin1")));
    if (hash !== hex(sha256(Buffer.from(`{"body":${body}${rest}}`, "latin1"))) ||
        !verifies(this.signer, unhex(signature), Buffer.concat([Buffer.from("fedsys ledger line v1\0"), unhex(hash)]))) {
      throw new Error(`line ${seq} is not the coordinator's`);
    }
    if (Number(seq) < this.lines) { // shown before
      if (Number(seq) === this.lines - 1 && link !== this.link) throw new Error("two histories");
      return;
    }
    if (Number(seq) !== this.lines || before !== this.link) throw new Error("two histories");
    const read = readJson(Buffer.from(text, "latin1"), ["body", "hash", "kind", "prev_hash", "seq", "signature"]);
    this.content(kind, read.body, hash, sent, signed);
    this.lines++;
    this.link = link; this.head = hash; this.kind = kind; this.open = kind === "reserve";
  }
  content(kind, body, hash, sent, signed) {
    const { plan, roster_version: version, roster_hash: roster } = this.terms;
    if ((kind === "header") !== (this.lines === 0) || this.kind === "closed") throw new Error(`a ${kind} in the wrong place`);
    if (kind === "header") {
      if (body.job !== this.job || !same(body.plan, plan) || body.population.roster_version !== version ||
          body.population.roster_sha256 !== roster) throw new Error("a header of another job");
      this.model = body.initial_weights_sha256;
    } else if (kind === "reserve") {
      const round = ++this.rounds, own = sent(round);
      if (body.round !== round || round > plan.rounds || !priced(body.event, plan)) {
        throw new Error(`round ${round} is not reserved as agreed`);
      }
      if (own && (!same(own.event, body.event) || own.weights !== this.model)) {
        throw new Error(`round ${round} has another price or model than was told`);
      }
    } else if (kind === "commit" || kind === "abort") {
      if (!this.open || body.round !== this.rounds) throw new Error(`a ${kind} of a round that is not open`);
      const head = signed(this.rounds);
      if (head && head !== hash) throw new Error(`round ${this.rounds} has a second outcome`);
      if (kind === "commit") this.model = body.weights_sha256;
    }
  }
}

const framed = (bytes) => Buffer.concat([be(bytes.length, 4), bytes]);
export const statement = (said) => Buffer.concat([Buffer.from("fedsys countersignature v2\0"),
  framed(said.job), framed(said.terms), be(said.round, 4), framed(said.head), framed(said.previous), framed(said.weights),
  be(said.uploaded ? 1 : 0, 4), framed(said.nonce), be(said.invitations, 4), be(said.uploads, 4)]);
