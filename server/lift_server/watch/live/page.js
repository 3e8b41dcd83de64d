// The live page: asks for the state every three seconds, and draws it. Everything that comes from
// the server is put in as text, never as HTML.
const POLL_MS = 3000;
const HIDDEN_POLL_MS = 20000;
const OVER_POLL_MS = 30000;
const COLOURS = 8;
const CELL = 15;
const CLIPS_SHOWN = 50;
const SVG = "http://www.w3.org/2000/svg";
const OUTCOMES = {
  counted: "counted",
  late: "no answer in time",
  refused: "refused",
  uncounted: "answered, not counted",
  "not asked": "not asked",
};

const byId = (id) => document.getElementById(id);
let state = null;
let rounds = [];
let run = null;
let picked = null;
let skewMs = 0;
let lastAnswer = null;

// ---- small helpers

function put(node, text) {
  const written = String(text);
  if (node.textContent !== written) node.textContent = written;
}

function make(name, text, className) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

function drawn(name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function foreign(text) {
  return make("bdi", text);
}

function short(text, longest) {
  const letters = [...text];
  return letters.length > longest ? `${letters.slice(0, longest - 1).join("")}…` : text;
}

function span(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 120) return `${whole} s`;
  if (whole < 7200) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

function ago(text, nowMs) {
  const time = Date.parse(text ?? "");
  return Number.isNaN(time) ? "–" : `${span((nowMs - time) / 1000)} ago`;
}

function figure(value, decimals, unit = "") {
  return value === null || value === undefined ? "–" : `${value.toFixed(decimals)}${unit}`;
}

function size(bytes) {
  if (bytes < 10000) return `${bytes} B`;
  return bytes < 1e7 ? `${(bytes / 1000).toFixed(0)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

// ---- the opening

function showOpening() {
  const nowMs = Date.now() + skewMs;
  put(byId("name"), state.federation ?? "?");
  document.title = `${state.federation ?? "LiFT"} · round ${state.rounds_done ?? 0} of ${state.rounds ?? "?"}`;
  byId("phantom").hidden = !state.phantom;
  put(byId("summary"), state.problem ? state.problem.what : sentence(nowMs));
  byId("progress").max = state.rounds || 1;
  byId("progress").value = state.rounds_done ?? 0;
  put(byId("done"), `${state.rounds_done ?? "–"} of ${state.rounds ?? "–"}`);
  put(byId("closes"), closes(nowMs));
  put(byId("left"), state.left_s === null || state.left_s === undefined ? "–" : span(state.left_s));
  const sites = Object.values(state.sites ?? {}).filter((site) => site.doing !== "removed");
  const online = sites.filter((site) => site.online).length;
  put(byId("online"), state.running ? `${online} of ${sites.length}` : "–");
  put(byId("epsilon"), state.privacy?.mode === "none" ? "no noise" : figure(state.epsilon, 3));
  put(byId("updated"), ago(state.updated, nowMs));
  put(byId("version"), state.version);
  put(byId("plan"), state.plan_digest ? state.plan_digest.slice(0, 12) : "–");
}

// the server's sentence without its ever-changing seconds: a screen reader would never fall silent
function sentence(nowMs) {
  if (state.phase !== "round" || !state.running) return state.summary;
  const what = { statistics: "sites prepare their volumes", guard: "sites evaluate the mixer" };
  const late = deadline() !== null && deadline() < nowMs ? ", past its deadline" : "";
  return `round ${state.round} of ${state.rounds}, ${what[state.exchange] ?? "sites train"}${late}`;
}

function deadline() {
  const began = Date.parse(state.round_started ?? "");
  return Number.isNaN(began) || !state.deadline_s ? null : began + 1000 * state.deadline_s;
}

function closes(nowMs) {
  const end = deadline();
  if (state.phase !== "round" || !state.running || end === null) return "–";
  return end > nowMs ? span((end - nowMs) / 1000) : "past its deadline";
}

// ---- sites

const HEADINGS = ["connection", "activity", "last seen", "counted", "loss", "validation", "sent", "epsilon", "last missed"];

function showSites() {
  const body = byId("site-rows");
  const names = Object.keys(state.sites ?? {});
  const shown = [...body.rows].map((row) => row.dataset.site);
  if (names.join("\n") !== shown.join("\n") || names.length !== shown.length) {
    body.replaceChildren(...names.map(siteRow));
  }
  const nowMs = Date.now() + skewMs;
  for (const row of body.rows) fillSite(row, state.sites[row.dataset.site], nowMs);
}

function siteRow(name) {
  const row = make("tr");
  row.dataset.site = name;
  const heading = make("th");
  heading.scope = "row";
  const button = make("button", undefined, "site");
  button.type = "button";
  button.append(foreign(short(name, 64)));
  button.title = name;
  button.setAttribute("aria-pressed", String(picked === name));
  button.addEventListener("click", () => pick(picked === name ? null : name));
  heading.append(button);
  row.append(heading);
  for (const text of HEADINGS) {
    const cell = make("td");
    cell.dataset.heading = text;
    row.append(cell);
  }
  return row;
}

function fillSite(row, site, nowMs) {
  const values = [
    site.online === null ? "–" : site.online ? "● online" : "○ offline",
    site.doing,
    ago(site.last_contact, nowMs),
    `${site.counted} of ${state.rounds_done}`,
    figure(site.loss, 4),
    figure(site.validation_psnr_db, 2, " dB"),
    site.received_bytes === null ? "–" : size(site.received_bytes),
    figure(site.epsilon, 3),
    site.last_refusal ?? "",
  ];
  const classes = ["nowrap", "words", ...Array(6).fill("figure"), "words"];
  if (site.online !== null) classes[0] += site.online ? " good" : " bad";
  if (site.doing.startsWith("missed")) classes[1] += " bad";
  values.forEach((value, index) => {
    const cell = row.cells[index + 1];
    put(cell, value);
    cell.className = classes[index];
  });
}

function pick(name) {
  picked = name;
  for (const button of document.querySelectorAll("button.site")) {
    button.setAttribute("aria-pressed", String(button.closest("tr").dataset.site === name));
  }
  showCurves();
}

// ---- timeline

function mark(kind, x, y, side) {
  const middle = { x: x + side / 2, y: y + side / 2 };
  if (kind === "counted") return drawn("rect", { class: kind, x: x + 2, y: y + 2, width: side - 4, height: side - 4, rx: 2 });
  if (kind === "late") return drawn("circle", { class: kind, cx: middle.x, cy: middle.y, r: side / 2 - 3 });
  if (kind === "refused") {
    const [low, high] = [3.5, side - 3.5];
    return drawn("path", { class: kind, d: `M${x + low} ${y + low}L${x + high} ${y + high}M${x + high} ${y + low}L${x + low} ${y + high}` });
  }
  if (kind === "uncounted") return drawn("rect", { class: kind, x: x + 3, y: y + 3, width: side - 6, height: side - 6 });
  return drawn("circle", { class: "not-asked", cx: middle.x, cy: middle.y, r: 1.5 });
}

function showLegend() {
  const keys = Object.entries(OUTCOMES).map(([kind, words]) => {
    const key = make("span", undefined, "key");
    const picture = drawn("svg", { width: CELL, height: CELL, "aria-hidden": "true" });
    picture.append(mark(kind, 0, 0, CELL));
    key.append(picture, ` ${words}`);
    return key;
  });
  byId("legend").replaceChildren(...keys);
}

function showTimeline() {
  const box = byId("timeline-box");
  const names = [...new Set([...Object.keys(state.sites ?? {}), ...rounds.flatMap((line) => Object.keys(line.sites))])].sort();
  const place = 150;
  const room = Math.max(6, Math.floor((box.clientWidth - place - 8) / CELL));
  const shown = rounds.slice(-room);
  if (!shown.length) {
    box.replaceChildren(make("p", "No round is finished yet.", "note"));
    return;
  }
  const width = place + shown.length * CELL + 4;
  const height = 20 + names.length * CELL;
  const missed = shown.reduce((sum, line) => sum + Object.values(line.sites).filter((kind) => kind !== "counted").length, 0);
  const picture = drawn("svg", {
    width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `Rounds ${shown[0].round} to ${shown.at(-1).round}: ${names.length} sites, ${missed} times a site did not count. The table of refusals lists the sites and the reasons.`,
  });
  shown.forEach((line, column) => {
    if (line.round % 5 === 0 || shown.length < 8) {
      picture.append(drawn("text", { x: place + column * CELL + CELL / 2, y: 12, "text-anchor": "middle" }, line.round));
    }
  });
  names.forEach((name, row) => {
    const y = 18 + row * CELL;
    // an inner picture cuts off what is too wide
    const label = drawn("svg", { x: 0, y, width: place - 8, height: CELL });
    label.append(drawn("text", { class: "name", x: 0, y: 11 }, short(name, 30)));
    picture.append(label);
    shown.forEach((line, column) => {
      const kind = line.sites[name] ?? "not asked";
      const cell = mark(kind, place + column * CELL, y, CELL);
      cell.append(drawn("title", {}, `round ${line.round}, ${name}: ${OUTCOMES[kind]}`));
      picture.append(cell);
    });
  });
  const more = rounds.length > shown.length ? [make("p", `The last ${shown.length} of ${rounds.length} exchanges.`, "note")] : [];
  box.replaceChildren(picture, ...more);
}

// ---- curves

function series(key) {
  const lines = new Map();
  for (const line of rounds) {
    if (line.kind !== "train") continue;
    for (const [name, value] of Object.entries(line[key] ?? {})) {
      if (value === null) continue;
      if (!lines.has(name)) lines.set(name, []);
      lines.get(name).push([line.round, value]);
    }
  }
  return new Map([...lines].sort(([one], [other]) => (one < other ? -1 : 1)));
}

function meanOf(lines) {
  const sums = new Map();
  for (const points of lines.values()) {
    for (const [round, value] of points) {
      const [sum, count] = sums.get(round) ?? [0, 0];
      sums.set(round, [sum + value, count + 1]);
    }
  }
  return [...sums].sort(([one], [other]) => one - other).map(([round, [sum, count]]) => [round, sum / count]);
}

function chart(title, lines, unit) {
  const [width, height, left, right, top, bottom] = [460, 230, 52, 12, 12, 26];
  const few = lines.size <= COLOURS;
  const all = [...lines.values()].flat();
  const values = all.map(([, value]) => value);
  const last = Math.max(...all.map(([round]) => round), 1);
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (high - low < 1e-12) [low, high] = [low - Math.abs(low || 1) * 0.05, high + Math.abs(high || 1) * 0.05];
  const x = (round) => left + ((width - left - right) * (round - 1)) / Math.max(last - 1, 1);
  const y = (value) => top + ((height - top - bottom) * (high - value)) / (high - low);
  const mean = meanOf(lines);
  const label = `${title} after round ${last}: mean ${mean.at(-1)[1].toPrecision(4)}${unit}, from ${values.length ? low.toPrecision(4) : "?"} to ${high.toPrecision(4)}.`;
  const picture = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const part of [0, 0.25, 0.5, 0.75, 1]) {
    const value = low + part * (high - low);
    picture.append(drawn("line", { class: "axis", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    picture.append(drawn("text", { x: left - 5, y: y(value) + 4, "text-anchor": "end" }, value.toPrecision(3)));
  }
  for (const round of new Set([1, Math.ceil(last / 2), last])) {
    picture.append(drawn("text", { x: x(round), y: height - 8, "text-anchor": "middle" }, round));
  }
  const draw = (points, attributes, name) => {
    const path = drawn("path", { ...attributes, d: points.map(([round, value], i) => `${i ? "L" : "M"}${x(round).toFixed(1)} ${y(value).toFixed(1)}`).join("") });
    path.append(drawn("title", {}, name));
    picture.append(path);
    if (points.length === 1) {
      picture.append(drawn("circle", { cx: x(points[0][0]), cy: y(points[0][1]), r: 3, fill: attributes.stroke ?? "currentColor" }));
    }
  };
  [...lines].forEach(([name, points], index) => {
    const apart = picked !== null && picked !== name ? " faded" : "";
    if (few) draw(points, { class: `line${apart}`, stroke: `var(--c${index})` }, name);
    else draw(points, { class: `line thin${apart}` }, name);
  });
  if (!few) draw(mean, { class: "line mean" }, "mean over sites");
  if (!few && lines.has(picked)) draw(lines.get(picked), { class: "line picked" }, picked);
  const keys = make("p", undefined, "keys note");
  if (few) {
    [...lines.keys()].forEach((name, index) => keys.append(keyOf(name, `var(--c${index})`)));
  } else {
    keys.append(keyOf("mean over sites", "var(--mean)"), keyOf(`${lines.size} sites`, "var(--quiet)"));
    if (lines.has(picked)) keys.append(keyOf(picked, "var(--c1)"));
  }
  const whole = make("figure");
  whole.append(make("figcaption", title), picture, keys);
  return whole;
}

function keyOf(name, colour) {
  const key = make("span");
  const line = make("i");
  line.style.background = colour;
  key.append(line, foreign(short(name, 32)));
  return key;
}

function showCurves() {
  const seconds = new Map([["all sites", rounds.filter((line) => line.kind === "train" && line.seconds !== null).map((line) => [line.round, line.seconds])]]);
  const wanted = [
    ["Training loss by round", series("loss"), ""],
    ["Validation PSNR by round (dB)", series("psnr"), " dB"],
    ["Seconds by round", seconds.get("all sites").length ? seconds : new Map(), " s"],
  ];
  const charts = wanted.filter(([, lines]) => lines.size).map(([title, lines, unit]) => chart(title, lines, unit));
  const note = make("p", "No round is finished yet.", "note");
  byId("charts").replaceChildren(...(charts.length ? charts : [note]));
}

// ---- clips

function showClips() {
  const times = new Map();
  const rows = [];
  for (const line of rounds) {
    const clips = Object.entries(line.clipped ?? {});
    for (const [name] of clips) times.set(name, (times.get(name) ?? 0) + 1);
    // a fall names whom it left out, also where nobody was clipped
    if (line.fall && !clips.length) clips.push(["", [null, null]]);
    clips.forEach(([name, [ratio, factor]], place) => rows.push([line, name, ratio, factor, place === 0]));
  }
  const shown = rows.slice(-CLIPS_SHOWN).reverse().map(([line, name, ratio, factor, first]) => {
    const row = make("tr");
    const site = make("td");
    site.append(foreign(short(name || "–", 64)));
    const then = make("td", undefined, "words");
    then.append(foreign(first && line.fall ? short(line.fall, 300) : ""));
    row.append(make("td", line.round), site, make("td", figure(ratio, 2), "figure"), make("td", figure(factor, 3), "figure"), then);
    return row;
  });
  const often = [...times].sort(([one, n], [other, m]) => m - n || (one < other ? -1 : 1)).slice(0, COLOURS);
  const more = rows.length > shown.length ? ` The last ${shown.length} of ${rows.length}.` : "";
  const told = often.map(([name, count]) => `${short(name, 32)} in ${count} rounds`).join(", ");
  put(byId("clips-note"), `${told ? `Clipped: ${told}.` : ""}${more}`);
  byId("no-clips").hidden = rows.length > 0;
  byId("clips-box").hidden = rows.length === 0;
  byId("clip-rows").replaceChildren(...shown);
}

// ---- refusals, privacy, certificates, log

function showRefusals() {
  const rows = (state.refusals ?? []).map((refusal) => {
    const row = make("tr");
    const site = make("td");
    site.append(foreign(short(refusal.site, 64)));
    const why = make("td");
    why.append(foreign(short(refusal.reason, 300)));
    row.append(make("td", refusal.round), site, make("td", OUTCOMES[refusal.outcome] ?? refusal.outcome), why);
    return row;
  });
  byId("no-refusals").hidden = rows.length > 0;
  byId("refusals-box").hidden = rows.length === 0;
  byId("refusal-rows").replaceChildren(...rows);
}

function facts(node, pairs) {
  node.replaceChildren(...pairs.flatMap(([name, value]) => {
    const shown = make("dd");
    shown.append(foreign(value));
    return [make("dt", name), shown];
  }));
}

function showPrivacy() {
  const told = state.privacy;
  if (!told) {
    facts(byId("privacy-facts"), [["mode", "not recorded yet"]]);
    return;
  }
  const names = {
    mode: "mode", statement: "meaning", unit: "protects", epsilon: "epsilon at the end",
    epsilon_where_times_are_seen: "epsilon for observers of answer times",
    epsilon_of_a_patient_in_two_hospitals: "epsilon of a patient in two hospitals", delta: "delta", accountant: "accountant",
  };
  facts(byId("privacy-facts"), Object.entries(names).filter(([key]) => key in told).map(([key, name]) => [name, String(told[key])]));
}

function showCertificates() {
  const nowMs = Date.now() + skewMs;
  facts(byId("certificate-facts"), Object.entries(state.expiry ?? {}).map(([name, ends]) => {
    const days = Math.floor((Date.parse(ends) - nowMs) / 864e5);
    return [name, `ends ${ends.slice(0, 10)}, in ${days} days`];
  }));
  const notices = (state.certificates ?? []).map((notice) => make("li", `${notice.level}: ${notice.certificate} ${notice.text}. ${notice.remedy}`, notice.level === "problem" ? "bad" : "open"));
  byId("certificate-notices").replaceChildren(...notices);
}

function showLog() {
  const box = byId("log-lines");
  const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 30;
  const text = (state.log ?? []).join("\n") || "The log is empty.";
  if (box.textContent === text) return;
  box.textContent = text;
  if (atEnd) box.scrollTop = box.scrollHeight;
}

// ---- asking

async function fetchJson(path) {
  const response = await fetch(path, { cache: "no-store" });
  if (!response.ok) throw new Error(`status ${response.status}`);
  return response.json();
}

async function look() {
  const fresh = await fetchJson("state.json");
  skewMs = Date.parse(fresh.now) - Date.now();
  const known = fresh.run === run ? rounds.length : 0;
  if (fresh.run !== run || fresh.round_count !== rounds.length) {
    const more = await fetchJson(`rounds.json?after=${known}&run=${encodeURIComponent(run ?? "")}`);
    rounds = [...rounds.slice(0, more.from), ...more.rounds];
    run = more.run;
  }
  return fresh;
}

function show() {
  showOpening();
  showSites();
  showRefusals();
  showPrivacy();
  showCertificates();
  showLog();
}

function trouble(text) {
  byId("trouble").hidden = !text;
  put(byId("trouble"), text ?? "");
}

async function poll() {
  const [before, beforeRun] = [rounds.length, run];
  try {
    state = await look();
    lastAnswer = new Date();
    trouble(state.problem ? `${state.problem.what}: ${state.problem.seen}. ${state.problem.remedy}` : null);
    show();
    if (before !== rounds.length || beforeRun !== run || !byId("timeline-box").hasChildNodes()) {
      showTimeline();
      showCurves();
      showClips();
    }
    document.documentElement.dataset.looks = String(Number(document.documentElement.dataset.looks ?? 0) + 1);
  } catch (error) {
    const since = lastAnswer ? ` since ${lastAnswer.toLocaleTimeString()}` : "";
    trouble(`The process of this page does not answer${since}; the figures below are old. The run itself may be fine: see "lift-server status".`);
  }
  const over = state && state.complete && !state.running;
  setTimeout(poll, document.hidden ? HIDDEN_POLL_MS : over ? OVER_POLL_MS : POLL_MS);
}

showLegend();
poll();
setInterval(() => {
  if (state && !state.problem) {
    showOpening();
    showSites();
  }
}, 1000);
let resized;
window.addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(() => state && showTimeline(), 200);
});
