"use strict";
// The page of tools.label. Whatever comes from the server becomes text, never markup.

const SHOWN = 40;  // crops of a row at first
const $ = (id) => document.getElementById(id);
const state = { view: "clusters", offset: 0, total: 0, rows: [], selected: new Set(), source: null, all: new Set(), busy: false, pairs: [], suspects: [], version: -1 };

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

function many(number, word) { return `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`; }

function say(text, bad = false) {
  $("message").textContent = text;
  $("message").className = bad ? "bad" : "";
}

async function ask(path, content) {
  const options = content === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content) };
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    throw new Error("The server does not answer. Nothing that was confirmed is lost: start tools.label again.");
  }
  const text = await answer.text();
  let value;
  try { value = JSON.parse(text); } catch (error) { value = { error: text }; }
  if (!answer.ok) throw new Error(value.error || answer.statusText);
  return value;
}

async function guarded(work) {
  if (state.busy) return;
  state.busy = true;
  try { await work(); } catch (error) { say(error.message, true); } finally { state.busy = false; }
}

function showCounts(s) {
  state.version = s.version;
  for (const view of ["clusters", "pairs"]) $(`view-${view}`).hidden = Boolean(s.given);
  const n = (x) => x.toLocaleString("en");
  $("title").textContent = s.title || $("title").textContent;
  const parts = s.given ? [many(s.images, "image"), `${n(s.changed)} labels changed`, many(s.decisions, "decision")] : [many(s.images, "image"), many(s.clusters, "cluster"), `${n(s.alone)} alone`, `${n(s.decided)} decided (${Math.floor(100 * s.decided / Math.max(1, s.images))} %)`, many(s.decisions, "decision")];
  if (s.names) parts.push(many(s.names, "name"));
  if (s.nobody) parts.push(`${n(s.nobody)} nobody`);
  if (s.unreadable) parts.push(`${n(s.unreadable)} cannot be read`);
  $("counts").textContent = parts.join(" · ");
  const box = $("contradictions");
  box.hidden = !s.contradictions.length;
  box.replaceChildren(...s.contradictions.map((c) => make("p", {},
    make("strong", {}, `Decision ${c.number} contradicts`),
    image(c.pair[0]), image(c.pair[1]),
    `it says ${c.same ? "same" : "different"}, and the opposite follows from ${c.against.join(", ")}. It is not applied.`,
    make("button", { onclick: () => undo(c.number) }, `Withdraw ${c.number}`),
    ...c.against.slice(0, 6).map((number) => make("button", { onclick: () => undo(number) }, `Withdraw ${number}`)))));
}

async function decide(content, words) {
  await guarded(async () => {
    const s = await ask("/decide", content);
    showCounts(s);
    say(s.contradicts ? `${words}: this contradicts earlier decisions and is not applied.` : `${words}.`, Boolean(s.contradicts));
    state.selected.clear();
    await refresh();
  });
}

const undo = (number = 0) => guarded(async () => {
  showCounts(await ask("/undo", { number }));
  say("Undone.");
  await refresh();
});

const redo = () => guarded(async () => {
  showCounts(await ask("/redo", {}));
  say("Done again.");
  await refresh();
});

function image(row, whole = false, lazy = true) {
  const node = make("img", { src: `/${whole ? "whole" : "thumbnail"}/${row}`, alt: `crop ${row}`, loading: lazy ? "lazy" : "eager", decoding: "async", draggable: "false" });
  node.addEventListener("error", () => node.replaceWith(make("span", { class: "gone" }, `crop ${row} cannot be read`)));
  return node;
}

// ---------------------------------------------------------------- clusters

function rowOf(node) {
  const section = node && node.closest ? node.closest(".row[data-label]") : null;
  return section ? state.rows.find((row) => row.label === Number(section.dataset.label)) : null;
}

function drawRow(row) {
  const decided = new Set(row.decided);
  const shown = state.all.has(row.label) ? row.images : row.images.slice(0, SHOWN);
  const crops = shown.map((id, i) => {
    const button = make("button", { class: decided.has(i) ? "crop decided" : "crop", "data-row": id, "aria-pressed": String(state.selected.has(id)), draggable: "true", tabindex: "-1", "aria-label": `crop ${id}${decided.has(i) ? ", decided" : ""}` }, image(id));
    button.addEventListener("click", () => { focusCrop(id); toggle(id); });
    button.addEventListener("dragstart", (event) => { event.stopPropagation(); event.dataTransfer.setData("text/plain", `crop ${id}`); });
    return button;
  });
  const title = row.name || (row.images.length > 1 ? `cluster ${row.label}` : `crop ${row.label}, alone`);
  const head = make("header", { draggable: "true" }, make("h2", {}, title), make("span", { class: "note" }, `${many(row.images.length, "crop")}${row.confirmed ? ", confirmed" : ""}`));
  head.addEventListener("dragstart", (event) => event.dataTransfer.setData("text/plain", `cluster ${row.label}`));
  const section = make("section", { class: `row${row.confirmed ? " confirmed" : ""}${state.source === row.stand ? " source" : ""}`, "data-label": row.label, "aria-label": `${title}, ${many(row.images.length, "crop")}${row.confirmed ? ", confirmed" : ""}` }, head, make("div", { class: "crops" }, ...crops));
  if (shown.length < row.images.length) head.append(make("button", { onclick: () => { state.all.add(row.label); draw(); } }, `show all ${row.images.length}`));
  section.addEventListener("dragover", (event) => { event.preventDefault(); section.classList.add("target"); });
  section.addEventListener("dragleave", () => section.classList.remove("target"));
  section.addEventListener("drop", (event) => { event.preventDefault(); section.classList.remove("target"); dropped(event.dataTransfer.getData("text/plain"), row); });
  return section;
}

function drawClusters() {
  const last = Math.min(state.offset + state.rows.length, state.total);
  const pages = make("div", { class: "pages" },
    make("button", { onclick: () => turn(-1), "aria-keyshortcuts": "[" }, "[ before"),
    make("span", {}, state.total ? `clusters ${state.offset + 1} to ${last} of ${state.total.toLocaleString("en")}` : "no crops"),
    make("button", { onclick: () => turn(1), "aria-keyshortcuts": "]" }, "] after"));
  $("main").replaceChildren(pages, ...state.rows.map(drawRow));
}

function cropsOf(section) { return [...section.querySelectorAll(".crop")]; }

function focusCrop(id) {
  const node = document.querySelector(`.crop[data-row="${Number(id)}"]`);
  if (!node) return false;
  for (const other of document.querySelectorAll('.crop[tabindex="0"]')) other.tabIndex = -1;
  node.tabIndex = 0;
  node.focus();
  state.focus = Number(id);
  return true;
}

function restoreFocus() {
  if (state.focus !== undefined && focusCrop(state.focus)) return;
  const sections = [...document.querySelectorAll(".row[data-label]")];
  const section = sections[Math.min(state.at || 0, sections.length - 1)];
  if (section) focusCrop(cropsOf(section)[0].dataset.row);
}

function toggle(id) {
  if (state.selected.has(id)) state.selected.delete(id); else state.selected.add(id);
  const node = document.querySelector(`.crop[data-row="${id}"]`);
  if (node) node.setAttribute("aria-pressed", String(state.selected.has(id)));
}

function move(key) {
  const crop = document.activeElement.closest(".crop");
  const sections = [...document.querySelectorAll(".row[data-label]")];
  if (!crop) { state.focus = undefined; restoreFocus(); return; }
  const section = crop.closest(".row"), crops = cropsOf(section), i = crops.indexOf(crop), s = sections.indexOf(section);
  let next = null;
  if (key === "ArrowLeft") next = crops[i - 1];
  else if (key === "ArrowRight") next = crops[i + 1];
  else {
    const other = sections[s + (key === "ArrowUp" ? -1 : 1)];
    if (other) next = cropsOf(other)[Math.min(i, cropsOf(other).length - 1)];
  }
  if (next) { state.at = sections.indexOf(next.closest(".row")); focusCrop(next.dataset.row); }
}

const turn = (by) => guarded(async () => {
  const next = state.offset + by * 50;
  if (next < 0 || next >= state.total) return;
  state.offset = next; state.focus = undefined; state.at = 0;
  await refresh();
  window.scrollTo(0, 0);
});

function chosen(row) {  // the selected crops of a row, or the one in focus
  const picked = row.images.filter((id) => state.selected.has(id));
  return picked.length ? picked : row.images.filter((id) => id === state.focus);
}

function standFor(row, without) {  // a crop that stands for the others of a row
  if (!without.includes(row.stand)) return row.stand;
  return row.images.find((id) => !without.includes(id));
}

function clusterKey(key) {
  const row = rowOf(document.activeElement);
  if (!row) return false;
  const picked = chosen(row), rest = standFor(row, picked);
  if (key === "x") toggle(state.focus);
  else if (key === "a") { state.all.add(row.label); draw(); }
  else if (key === "c") {
    if (row.images.length < 2) say("There is nothing to confirm: the crop is alone.");
    else decide({ view: "clusters", same: [row.images] }, `${row.images.length} crops are one identity`);
  } else if (key === "o" || key === "s") {
    if (rest === undefined) { say(row.images.length < 2 ? "The crop is alone already." : "All crops of the row are selected: leave one.", true); return true; }
    const others = row.images.filter((id) => !picked.includes(id));
    const differ = key === "o" ? picked.map((id) => [id, rest]) : others.map((id) => [picked[0], id]);
    const content = { view: "clusters", differ };
    if (key === "s" && picked.length > 1) content.same = [picked];
    decide(content, key === "o" ? `${picked.length} taken out` : `${picked.length} split off`);
  } else if (key === "b") decide({ view: "clusters", nobody: picked }, `${picked.length} are nobody`);
  else if (key === "m") merge(row);
  else if (key === "n") rename(row);
  else return false;
  return true;
}

function merge(row) {
  if (state.source === null || !state.rows.length) { state.source = row.stand; say("Merge: go to the other cluster and press m again, Esc to leave it."); draw(); return; }
  const source = state.source;
  state.source = null;
  if (row.images.includes(source)) { say("Merge left: it is the same cluster."); draw(); return; }
  decide({ view: "clusters", same: [[source, row.stand]] }, "Merged");
}

function dropped(text, row) {
  const [kind, word] = text.split(" "), id = Number(word);
  if (kind === "cluster") {
    const other = state.rows.find((one) => one.label === id);
    if (other && other !== row) decide({ view: "clusters", same: [[other.stand, row.stand]] }, "Merged");
  } else if (kind === "crop" && !row.images.includes(id)) {
    const from = state.rows.find((one) => one.images.includes(id));
    const rest = from ? standFor(from, [id]) : undefined;
    decide({ view: "clusters", same: [[id, row.stand]], ...(rest === undefined ? {} : { differ: [[id, rest]] }) }, "Moved");
  }
}

function rename(row) {
  const section = document.querySelector(`.row[data-label="${row.label}"]`);
  const input = make("input", { value: row.name, "aria-label": "name of the identity", maxlength: "200", size: "24" });
  section.querySelector("h2").replaceChildren(input);
  input.focus();
  input.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Escape") draw();
    if (event.key === "Enter" && input.value.trim()) decide({ view: "clusters", name: [[row.stand, input.value]] }, `Named ${input.value.trim()}`);
  });
}

// ---------------------------------------------------------------- pairs

const ROW_KEYS = ["s", "f", "g", "h", "j"];  // for the crops of a row, from the left

async function drawPairs() {
  const question = state.pairs[0];
  if (!question) { $("main").replaceChildren(make("p", { class: "question" }, "No pair is left whose answer would change anything.")); return; }
  const row = rowOfQuestion(question), several = row.length > 1;
  const names = await ask(`/names?rows=${[question.pair[0], ...row].join(",")}`);
  const figure = (id, more) => make("figure", {}, image(id, true, false), make("figcaption", {}, ...more, names[id] || ""));
  const choice = (id, i) => figure(id, several ? [make("button", { id: `choice-${i}`, onclick: () => answerPair("same", i), "aria-keyshortcuts": ROW_KEYS[i] }, make("kbd", {}, ROW_KEYS[i]), " same"), make("br")] : []);
  const answer = (word, key, label) => make("button", { id: `answer-${word}`, onclick: () => answerPair(word), "aria-keyshortcuts": key }, make("kbd", {}, key), ` ${label}`);
  const plain = several ? "Which of these is the one on the left?" : "The same, or different?";
  const again = question.said ? `Once more, the images speak against your answer (${question.said === "same" ? "same" : "different"}): the same?` : plain;
  const answers = several ? [answer("differ", "d", "none of them")] : [answer("same", "s", "same"), answer("differ", "d", "different")];
  $("main").replaceChildren(
    make("p", { class: "question" }, again),
    make("div", { class: several ? "pair several" : "pair", "data-pair": question.pair.join(",") }, figure(question.pair[0], []), ...row.map(choice)),
    make("div", { class: "answers" }, ...answers, answer("unsure", "k", "cannot tell")));
  for (const next of state.pairs.slice(1)) for (const id of [next.pair[0], ...rowOfQuestion(next)]) new Image().src = `/whole/${id}`;
}

function rowOfQuestion(question) { return [question.pair[1], ...question.others].slice(0, ROW_KEYS.length); }

function answerPair(word, choice = 0) {
  const question = state.pairs[0];
  if (!question) return;
  const row = rowOfQuestion(question), pairs = row.map((id) => [question.pair[0], id]);
  const said = { same: pairs.slice(choice, choice + 1), differ: pairs, unsure: pairs }[word];
  if (said.length) decide({ view: "pairs", [word]: said }, { same: "Same", differ: row.length > 1 ? "None of them" : "Different", unsure: "Left open" }[word]);
}

// ---------------------------------------------------------------- suspects, history

function drawSuspects(answer) {
  state.suspects = answer.rows;
  const cards = answer.rows.map((one, i) => make("section", { class: "row card", tabindex: i ? "-1" : "0", "data-card": i, "aria-label": `${one.kind}: ${one.reason}` },
    make("div", { class: "side" }, ...one.images.slice(0, 8).map((id) => image(id))),
    make("div", { class: "side" }, ...one.beside.slice(0, 8).map((id) => image(id))),
    make("p", {}, make("strong", {}, one.kind), make("br"), one.reason),
    make("div", { class: "answers" }, make("button", { onclick: () => judge(i, true) }, make("kbd", {}, "y"), " accept"), make("button", { onclick: () => judge(i, false) }, make("kbd", {}, "n"), " refuse"))));
  $("main").replaceChildren(make("p", {}, `${answer.total.toLocaleString("en")} suspects${answer.pending ? ` (${answer.pending})` : ""}`), ...cards);
  const first = document.querySelector(".card");
  if (first) first.focus();
}

function judge(i, accept) {
  const one = state.suspects[i];
  if (one) decide(accept ? { view: "suspects", why: one.reason.slice(0, 300), ...one.accept } : { view: "suspects", keep: [one.key] }, accept ? "Accepted" : "Refused");
}

function drawHistory(answer) {
  const rows = answer.rows.map((one) => make("tr", { class: one.counts ? "" : "gone" }, make("td", {}, String(one.number)), make("td", {}, one.view), make("td", {}, one.text),
    make("td", {}, one.counts && !one.text.startsWith("took back") ? make("button", { onclick: () => undo(one.number) }, `undo ${one.number}`) : "")));
  $("main").replaceChildren(make("table", {}, make("tr", {}, ...["number", "view", "decision", ""].map((word) => make("th", {}, word))), ...rows));
}

// ---------------------------------------------------------------- all views

function draw() {
  drawClusters();
  restoreFocus();
}

async function refresh() {
  for (const button of document.querySelectorAll("nav button")) {
    if (button.dataset.view === state.view) button.setAttribute("aria-current", "page"); else button.removeAttribute("aria-current");
  }
  if (state.view === "clusters") {
    const answer = await ask(`/clusters?offset=${state.offset}`);
    if (!answer.rows.length && answer.total) { state.offset = Math.floor((answer.total - 1) / 50) * 50; await refresh(); return; }
    state.rows = answer.rows; state.total = answer.total;
    draw();
  } else if (state.view === "pairs") {
    state.pairs = (await ask("/pair")).pairs;
    await drawPairs();
  } else if (state.view === "suspects") drawSuspects(await ask("/suspects"));
  else drawHistory(await ask("/history"));
  document.body.dataset.drawn = `${state.view} ${state.version}`;
}

const show = (view) => guarded(async () => {
  state.view = view;
  location.hash = view;
  await refresh();
});

function help() {
  $("help").hidden = !$("help").hidden;
  $("help-button").setAttribute("aria-expanded", String(!$("help").hidden));
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "INPUT") return;
  const key = event.key, views = { 1: "clusters", 2: "pairs", 3: "suspects", 4: "history" };
  let used = true;
  if (views[key]) { if (!$(`view-${views[key]}`).hidden) show(views[key]); }
  else if (key === "u") undo();
  else if (key === "U") redo();
  else if (key === "?") help();
  else if (state.view === "clusters") {
    if (key.startsWith("Arrow")) move(key);
    else if (key === "[") turn(-1);
    else if (key === "]") turn(1);
    else if (key === "Escape") { state.selected.clear(); state.source = null; say(""); draw(); }
    else used = clusterKey(key);
  } else if (state.view === "pairs") {
    const word = { d: "differ", k: "unsure" }[key], choice = ROW_KEYS.indexOf(key);
    if (word) answerPair(word); else if (choice >= 0) answerPair("same", choice); else used = false;
  } else if (state.view === "suspects") {
    const card = document.activeElement.closest(".card"), i = card ? Number(card.dataset.card) : 0;
    if (key === "y") judge(i, true);
    else if (key === "n") judge(i, false);
    else if (key === "ArrowDown" || key === "ArrowUp") {
      const next = document.querySelector(`[data-card="${i + (key === "ArrowDown" ? 1 : -1)}"]`);
      if (next) next.focus();
    } else used = false;
  } else used = false;
  if (used) event.preventDefault();
});

document.addEventListener("focusin", (event) => {
  const crop = event.target.closest ? event.target.closest(".crop") : null;
  if (crop) state.focus = Number(crop.dataset.row);
});

for (const button of document.querySelectorAll("nav button")) button.addEventListener("click", () => show(button.dataset.view));
$("undo").addEventListener("click", () => undo());
$("redo").addEventListener("click", () => redo());
$("help-button").addEventListener("click", help);

guarded(async () => {
  const wish = location.hash.slice(1);
  if (["clusters", "pairs", "suspects", "history"].includes(wish)) state.view = wish;
  const s = await ask("/state");
  if (s.given && state.view !== "history") state.view = "suspects";
  showCounts(s);
  await refresh();
});

setInterval(async () => {  // another window may have decided something
  if (state.busy || document.hidden || document.querySelector("input")) return;
  try {
    const s = await ask("/state");
    if (s.version !== state.version) { showCounts(s); await guarded(refresh); }
  } catch (error) { say(error.message, true); }
}, 5000);
