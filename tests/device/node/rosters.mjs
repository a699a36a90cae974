// DEVICE.md, "Rosters": lists that the authority signed, whole or as what they change.
import { hex, sha256, verifies } from "./bytes.mjs";
import { read } from "./canonical.mjs";

const LIST = ["version", "previous", "members", "colluders"];
const CHANGE = ["version", "added", "removed", "colluders"];
const CHANGES = Buffer.from('{"added":');
const require = (holds, text) => { if (!holds) throw new Error(text); };
const byNode = ([a], [b]) => a - b;

function whole(text, before) { // the bytes of the list that a change makes of the one before
  const { version, added, removed, colluders } = read(text, CHANGE), there = new Map(before?.members);
  require(before && version === before.version + 1, "a change that does not follow the last roster");
  for (const node of removed) require(there.delete(node), "it removes a node that is not there");
  for (const [node, key] of added) require(!there.has(node) && there.set(node, key), "it adds a node that is there");
  const members = [...there].sort(byNode);
  return Buffer.from(JSON.stringify({ colluders, members, previous: before.hash, version }));
}

// The next list, after those held, oldest first; the first may be of any version.
export function next(held, key, statement, signature) {
  const before = held.at(-1);
  const text = statement.subarray(0, CHANGES.length).equals(CHANGES) ? whole(statement, before) : statement;
  require(verifies(key, signature, Buffer.concat([Buffer.from("fedsys roster v1\0"), text])),
    "a roster that its authority did not sign");
  const list = read(text, LIST), { version, previous, members, colluders } = list;
  require(!before || (version === before.version + 1 && previous === before.hash), "a roster that does not follow the last");
  require(members.every(([node, own], k) => Number.isInteger(node) && /^[0-9a-f]{64}$/.test(own) &&
    (k === 0 || members[k - 1][0] < node)) && new Set(members.map(([, own]) => own)).size === members.length &&
    colluders >= 0 && colluders <= members.length, "no list of members");
  const known = new Map(held.flatMap((each) => each.members));
  for (const [node, own] of members) require((known.get(node) ?? own) === own, `node ${node} has another key`);
  return { ...list, hash: hex(sha256(text)) };
}
