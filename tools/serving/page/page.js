"use strict";

const at = (id) => document.getElementById(id);
let picture = null;

function say(words, bad) {
  at("state").textContent = words;
  at("state").classList.toggle("bad", Boolean(bad));
}

function take(file) {
  if (!file) return;
  picture = file;
  const reader = new FileReader();
  reader.onload = () => {
    at("shown").src = reader.result;
    at("shown").alt = "the picture that is searched for";
    at("shown").hidden = false;
    at("what").hidden = true;
  };
  reader.readAsDataURL(file);
}

function address() {
  const words = new URLSearchParams({ k: at("k").value || "20" });
  for (const camera of at("camera").value.split(/[\s,]+/).filter(Boolean)) words.append("camera", camera);
  for (const name of ["since", "until"]) if (at(name).value.trim()) words.set(name, at(name).value.trim());
  if (at("exact").checked) words.set("exact", "1");
  return `/search?${words}`;
}

function card(match) {
  const item = document.createElement("li");
  item.tabIndex = 0;
  const title = match.pid ? `identity ${match.pid}` : `row ${match.row}`;
  if (match.has_image) {
    const image = document.createElement("img");
    image.loading = "lazy";
    image.alt = `match ${match.rank}: ${title}`;
    image.src = `/thumbnail/${match.id}`;
    item.append(image);
  } else {
    const none = document.createElement("div");
    none.className = "none";
    none.textContent = "no image";
    item.append(none);
  }
  const head = document.createElement("strong");
  head.textContent = `${match.rank}. ${title}`;
  item.append(head);
  const facts = [];
  if ("probability" in match) facts.push(`P(same) ${match.probability.toFixed(2)}`);
  facts.push(`distance ${match.distance.toFixed(3)}`);
  if (match.camid) facts.push(`camera ${match.camid}`);
  if ("time" in match) facts.push(match.time > 1e8 ? new Date(match.time * 1000).toISOString().slice(0, 19) : `${match.time} s`);
  item.append(facts.join(", "));
  return item;
}

async function ask(event) {
  event.preventDefault();
  if (!picture) return say("Choose a picture first.", true);
  at("matches").replaceChildren();
  say("Searching.");
  at("go").disabled = true;
  try {
    const kind = picture.type.startsWith("image/") ? picture.type : "image/jpeg";
    const answer = await fetch(address(), { method: "POST", headers: { "Content-Type": kind }, body: picture });
    const content = await answer.json();
    if (!answer.ok) return say(content.error, true);
    const result = content.results[0];
    at("matches").replaceChildren(...result.matches.map(card));
    const known = "known" in result ? (result.known ? " The nearest one counts." : " Unknown: nobody is near enough.") : "";
    say(`${result.matches.length} matches.${known} ${content.how}`);
  } catch (error) {
    say("The service does not answer.", true);
  } finally {
    at("go").disabled = false;
  }
}

at("file").addEventListener("change", () => take(at("file").files[0]));
at("ask").addEventListener("submit", ask);
const drop = document.querySelector(".drop");
drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => { event.preventDefault(); drop.classList.remove("over"); take(event.dataTransfer.files[0]); at("file").required = false; });
at("matches").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const cards = [...at("matches").children];
  const next = cards[cards.indexOf(document.activeElement) + step];
  if (next) { next.focus(); event.preventDefault(); }
});
