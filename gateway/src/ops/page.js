"use strict";
// Foreign data, such as players' names and errors, is always inserted as text and never as HTML.

const POLL_MS = 1000;
// The projector reports every second. After this long without a report, the data counts as stale.
const STALE_MS = 5000;

const $ = (selector) => document.querySelector(selector);
const count = new Intl.NumberFormat("en-US");
const rate = new Intl.NumberFormat("en-US", { maximumFractionDigits: 1 });

function el(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

function span(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1000) return `${ms} ms`;
  if (ms < 10000) return `${(ms / 1000).toFixed(1)} s`;
  const s = Math.floor(ms / 1000), min = Math.floor(s / 60), h = Math.floor(min / 60);
  if (s < 60) return `${s} s`;
  if (h === 0) return `${min} min ${String(s % 60).padStart(2, "0")} s`;
  return h < 48 ? `${h} h ${String(min % 60).padStart(2, "0")} min` : `${Math.floor(h / 24)} days`;
}

const age = (ms) => ms < 1000 ? "now" : span(ms - ms % 1000).replace(".0 s", " s");
const ago = (ms) => ms < 1000 ? "now" : `${age(ms)} ago`;

function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

// Shows a list in the rows of a table. If an item was already in the list, its row is kept, so that focus and selection
// survive.
function fill(body, items, key, cells, finish = () => {}) {
  const old = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  const rows = items.map((item) => {
    const row = old.get(key(item)) ?? el("tr");
    row.dataset.key = key(item);
    cells(item).forEach((cell, at) => {
      const [content, kind] = Array.isArray(cell) ? cell : [cell, ""];
      const td = row.cells[at] ?? row.appendChild(el("td"));
      if (td.className !== kind) td.className = kind;
      if (!(content instanceof Node)) text(td, String(content));
      else if (!td.firstChild?.isEqualNode(content)) td.replaceChildren(content);
    });
    finish(row, item);
    return row;
  });
  if (rows.length !== body.rows.length || rows.some((row, at) => row !== body.rows[at])) body.replaceChildren(...rows);
}

function table(section, items, key, cells, finish) {
  fill($(`#${section} tbody`), items, key, cells, finish);
  const empty = $(`#${section} > .empty`);
  if (empty) {
    empty.hidden = items.length > 0;
    $(`#${section} table`).hidden = items.length === 0;
  }
}

function spark(queued, matched) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${queued.length * 3} 26`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${count.format(queued.reduce((a, b) => a + b, 0))} queued, ${count.format(matched.reduce((a, b) => a + b, 0))} matched in the last hour`);
  const most = Math.max(1, ...queued, ...matched);
  const bar = (kind, at, value, x, width) => {
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const height = value === 0 ? 0.6 : Math.max(1.5, value / most * 26);
    rect.setAttribute("class", kind);
    for (const [name, v] of Object.entries({ x: at * 3 + x, y: 26 - height, width, height })) rect.setAttribute(name, v);
    svg.append(rect);
  };
  queued.forEach((value, at) => bar("queued", at, value, 0, 2.5));
  matched.forEach((value, at) => value && bar("matched", at, value, 0.6, 1.3));
  return svg;
}

const zero = (value, kind = "n") => [value === null ? "–" : count.format(value), value ? kind : `${kind} zero`];

function names(players) {
  const node = el("span", { title: players.join("\n") });
  players.forEach((player, at) => node.append(at ? ", " : "", el("bdi", { textContent: player })));
  return node;
}

function pill(word, kind) {
  return el("span", { className: `pill ${kind}`, textContent: word });
}

function status(session) {
  if (session.ended) return pill(session.ended, { finished: "good", failed: "bad" }[session.ended] ?? "warn");
  if (session.status === "open") return session.server ? pill("open", "good") : pill("open, no server", "bad");
  const kind = session.attempt > 1 ? "warn" : "busy";
  return pill(session.server && session.server !== "requested" ? `starting, ${session.server}` : session.status, kind);
}

function choose(row, session) {
  row.classList.toggle("open", location.hash === `#${session.id}`);
  row.onclick ??= () => {
    if (getSelection().isCollapsed) location.hash = session.id;
  };
}

// Ids begin with the time, so sessions that started together differ only at the end.
const id = (session) => el("button", { className: "id", title: session.id, textContent: `…${session.id.slice(-12)}` });

function show(data) {
  const waiting = data.queues.reduce((sum, queue) => sum + queue.depth, 0);
  const oldest = Math.max(-1, ...data.queues.map((queue) => queue.oldest_ms ?? -1));
  text($("#tile-waiting"), count.format(waiting));
  text($("#tile-oldest"), oldest < 0 ? "nobody waits" : `longest wait ${age(oldest)}`);
  text($("#tile-sessions"), count.format(data.sessions));
  text($("#tile-playing"), `${count.format(data.playing)} players`);
  for (const [state, number] of Object.entries(data.servers)) text($(`#server-${state}`), count.format(number));

  table("queues", data.queues, (queue) => queue.name, (queue) => [
    queue.name, zero(queue.depth), [queue.oldest_ms === null ? "–" : age(queue.oldest_ms), "n"],
    [rate.format(queue.queued_per_minute), queue.queued_per_minute ? "n" : "n zero"],
    [rate.format(queue.matched_per_minute), queue.matched_per_minute ? "n" : "n zero"],
    [spark(queue.queued, queue.matched), "spark"],
  ]);

  const excluded = data.queues.flatMap((queue) => Object.entries(queue.excluded).map(([rule, times]) => ({ queue: queue.name, rule, times })));
  excluded.sort((a, b) => b.times - a.times);
  const shown = excluded.slice(0, 5).map(({ queue, rule, times }) => `${rule} in ${queue}: ${count.format(times)}`);
  text($("#excluded"), shown.length ? `Candidates that a rule excluded, for tickets that timed out in the last hour: ${shown.join(", ")}` : "");

  const most = Math.max(1, ...data.funnel.map((step) => step.players));
  table("funnel", data.funnel, (step) => step.step, (step) => {
    const bar = el("span", { className: step.players ? "" : "none" });
    bar.style.width = `${step.players / most * 100}%`;
    return [step.step, [bar, "bar"], zero(step.players), zero(step.sessions, "n soft"), [span(step.p50_ms), "n"], [span(step.p99_ms), "n"]];
  });
  const { cancelled, timed_out } = data.lost;
  text($("#lost"), `p50 and p99: time since the previous step. ${cancelled || timed_out ? `Left the queue without a match: ${count.format(cancelled)} cancelled, ${count.format(timed_out)} timed out.` : "No player left the queue without a match."}`);

  text($("#live h2 small"), data.sessions > data.live.length ? `the newest ${data.live.length} of ${count.format(data.sessions)}` : "");
  table("live", data.live, (session) => session.id, (session) => [
    id(session), session.queue, [session.region, "soft"], [names(session.players), "players"], status(session),
    [session.attempt || "–", session.attempt > 1 ? "n" : "n zero"], [age(session.age_ms), "n"],
  ], choose);

  table("closed", data.closed, (session) => session.id, (session) => [
    id(session), session.queue, [names(session.players), "players"], status(session), [session.attempt, "n"],
    [span(session.took_ms), "n"], [ago(session.age_ms), "n soft"],
  ], choose);

  const failures = Object.entries(data.failures).flatMap(([what, reasons]) =>
    Object.entries(reasons).map(([reason, times]) => ({ what: what === "servers" ? "game server" : "session", reason, times })));
  failures.sort((a, b) => b.times - a.times);
  const failed = failures.reduce((sum, failure) => sum + failure.times, 0);
  text($("#tile-failures"), count.format(failed));
  $("#tile-failures").className = failed ? "bad" : "";
  table("failures", failures, (failure) => `${failure.what} ${failure.reason}`,
    (failure) => [failure.what, [failure.reason, "text"], zero(failure.times)]);

  const deadLetters = data.letters;
  const dead = deadLetters ? Object.values(deadLetters.counts).reduce((a, b) => a + b, 0) : null;
  text($("#tile-dead-letters"), dead === null ? "–" : count.format(dead));
  $("#tile-dead-letters").className = dead ? "bad" : "";
  text($("#dead-letters h2 small"), deadLetters === null ? "not counted yet"
    : Object.entries(deadLetters.counts).map(([consumer, number]) => `${consumer} ${count.format(number)}`).join(" · ")
      + (deadLetters.looked_age_ms > 2 * STALE_MS ? ` · counted ${ago(deadLetters.looked_age_ms)}` : ""));
  table("dead-letters", deadLetters?.latest ?? [], (summary) => String(summary.letter), (summary) => [
    [summary.letter, "n"], summary.consumer,
    [el("span", {}, summary.error, el("small", { textContent: summary.subject })), "text"], [ago(summary.age_ms), "n soft"],
  ]);
  $("#dead-letters > .empty").hidden = dead !== 0;
  $("#dead-letters-key").hidden = !dead;
}

function mark(kind, word, detail, banner) {
  document.body.className = kind;
  text($("#mark b"), word);
  text($("#mark span"), detail);
  $("#banner").hidden = !banner;
  text($("#banner"), banner ?? "");
}

function showMark({ seq, behind, event_age_ms, seen_age_ms }, log) {
  const at = `sequence ${count.format(seq)}${event_age_ms === null ? "" : `, ${age(event_age_ms) === "now" ? "just now" : `${age(event_age_ms)} old`}`}`;
  if (log) {
    mark("silent", "log", at, `The log is ${log}.`);
  } else if (seen_age_ms === null) {
    mark("stale", "no projections", at, "There are no projections yet. Is a session worker running?");
  } else if (seen_age_ms > STALE_MS) {
    const since = new Date(Date.now() - seen_age_ms).toLocaleTimeString("en-GB");
    mark("stale", "stale", at, `The projections have not been updated since ${since}, ${ago(seen_age_ms)}. The dashboard shows the state of that time. No session worker follows the log, or NATS does not answer.`);
  } else if (behind > 1000) {
    mark("stale", `behind by ${count.format(behind)} events`, at, null);
  } else {
    mark("live", "live", at, null);
  }
}

let shown = 0;

async function ask(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(8000) });
  return { status: answer.status, body: await answer.json() };
}

async function showOverview() {
  try {
    const { status, body } = await ask("/ops/data.json");
    if (status === 200) {
      show(body);
      showMark(body.mark, body.log);
      shown = Date.now();
    } else {
      mark("silent", "no data", "", `${body.error}.${dataAge()}`);
    }
  } catch {
    mark("silent", "no answer", "", `The gateway does not answer.${dataAge()}`);
  }
}

const dataAge = () => shown ? ` The data shown is ${age(Date.now() - shown)} old.` : "";

async function showTimeline() {
  const chosen = location.hash.slice(1);
  const [empty, panel] = [$("#timeline > .empty"), $("#timeline .details")];
  if (!/^[0-9a-f-]{36}$/.test(chosen)) {
    [empty.hidden, panel.hidden] = [false, true];
    return;
  }
  let answer;
  try {
    answer = await ask(`/ops/sessions/${chosen}.json`);
  } catch {
    return;
  }
  if (location.hash.slice(1) !== chosen) return;
  const { status: code, body } = answer;
  [empty.hidden, panel.hidden] = [code === 200, code !== 200];
  if (code !== 200) {
    text(empty, `Session ${chosen}: ${body.error}.`);
    return;
  }
  const { session, events } = body;
  const about = el("p", { className: "about" }, el("span", { className: "id", textContent: session.id }),
    status(session), ` ${session.queue} in ${session.region}: `, names(session.players));
  const old = $("#timeline .about");
  if (!old.isEqualNode(about)) old.replaceWith(about);
  fill($("#timeline tbody"), events, (event) => String(event.seq), (event) => [
    [`+${count.format(event.since_ms)} ms`, "n"],
    [el("span", {}, event.type, event.detail ? el("small", { textContent: event.detail }) : ""), "text"],
    [event.attempt ?? "–", event.attempt ? "n" : "n zero"], [count.format(event.seq), "n soft"],
  ], (row, event) => {
    row.className = /Failed$/.test(event.type) ? "bad" : event.type === "Opened" ? "good" : "";
  });
  text($("#timeline code"), `garage session ${session.id}`);
}

async function poll() {
  // A hidden page does not poll.
  if (!document.hidden) await Promise.all([showOverview(), showTimeline()]);
  setTimeout(poll, POLL_MS);
}

addEventListener("hashchange", () => {
  showTimeline().then(() => $("#timeline").scrollIntoView({ block: "nearest", behavior: "smooth" }));
  for (const row of document.querySelectorAll("#live tr, #closed tr")) {
    row.classList.toggle("open", location.hash === `#${row.dataset.key}`);
  }
});
poll();
