// The page of `search.py serve`: sends what the user asks for, and draws the answers.

const $ = (id) => document.getElementById(id);
const TYPING_MS = 120; // pause after the last letter before a search
const LABELS_MS = 500; // tags look at every picture, so they wait longer
const RETRY_MS = 3000; // pause before an unreachable service is asked again

const about = await (await fetch("/api/index")).json();
let picture = null; // {name: …} of a picture that was sent, or {row: …} of an indexed one
let tags = []; // {label, count} of each; results refer to them by number
let tag = null; // the number of the label that filters the results
const newest = { search: 0, picture: 0, tags: 0 }; // the last request of each kind
let tiles = new Map(); // by row

// --- requests ---------------------------------------------------------------------------------

/** Send a request; throw an Error with a sentence unless it succeeds. */
async function post(path, body, type = "application/json") {
  let response, answer;
  try {
    response = await fetch(path, { method: "POST", headers: { "Content-Type": type }, body });
    answer = await response.json();
  } catch {
    throw Object.assign(new Error("this page's server does not answer; start it again"), { retry: true });
  }
  if (response.ok) return answer;
  throw Object.assign(new Error(answer.error), { retry: response.status >= 500 });
}

/**
 * Run `request`, and hand its answer to `show` unless a newer request of this kind was begun
 * meanwhile: answers may arrive in another order.
 */
async function latest(kind, request, show) {
  const mine = ++newest[kind];
  try {
    const answer = await request();
    if (mine !== newest[kind]) return;
    $("problem").hidden = true;
    show(answer);
  } catch (error) {
    if (mine !== newest[kind]) return;
    explain(error.retry ? `${error.message}; trying again` : error.message);
    if (error.retry) {
      setTimeout(() => mine === newest[kind] && latest(kind, request, show), RETRY_MS);
    }
  }
}

function explain(sentence) {
  $("problem").textContent = sentence;
  $("problem").hidden = false;
}

function debounced(milliseconds, action) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, milliseconds);
  };
}

function search() {
  const text = $("text").value.trim();
  $("weight-row").hidden = !(picture && text);
  $("results").classList.add("old");
  const body = JSON.stringify({
    text,
    without: $("without").value,
    picture: picture?.name ?? null,
    like: picture?.row ?? null,
    picture_weight: Number($("weight").value),
    count: Number($("count").value),
    labels: tags.map((entry) => entry.label),
    tag,
  });
  latest("search", () => post("/api/search", body), showResults);
}

function send(file) {
  if (file.size > about.max_picture_bytes) {
    const limit = about.max_picture_bytes.toLocaleString("en");
    return explain(`${file.name} has more than ${limit} bytes; choose a smaller file`);
  }
  latest("picture", () => post("/api/picture", file, "application/octet-stream"), (answer) =>
    choose({ name: answer.picture }, URL.createObjectURL(file), file.name),
  );
}

function countTags() {
  const typed = $("labels").value.split(/[,\n]/).map((label) => label.trim()).filter(Boolean);
  const body = JSON.stringify({ labels: typed });
  latest("tags", () => post("/api/tags", body), showTags);
}

// --- the picture --------------------------------------------------------------------------------

function choose(chosen, source, name) {
  if ($("preview").src.startsWith("blob:")) URL.revokeObjectURL($("preview").src);
  newest.picture++; // an older picture that is still being sent does not replace this one
  picture = chosen;
  $("chosen").hidden = !picture;
  $("choose").hidden = Boolean(picture);
  $("chosen-name").textContent = name ?? "";
  if (source) $("preview").src = source;
  else $("preview").removeAttribute("src");
  search();
}

function moreLike(result) {
  $("text").value = "";
  choose({ row: result.row }, `/thumbnail/${result.row}`, result.name);
  window.scrollTo({ top: 0 });
}

// --- results ------------------------------------------------------------------------------------

function showResults({ results, embed_ms, search_ms }) {
  const old = tiles;
  const focused = document.activeElement?.closest("#results li");
  tiles = new Map(results.map((r) => [r.row, old.get(r.row) ?? makeTile(r)]));
  results.forEach((result) => updateTile(tiles.get(result.row), result));
  $("results").replaceChildren(...tiles.values());
  $("results").classList.remove("old");
  current(buttons()[0]);
  if (focused) buttons()[0]?.focus(); // the best result, since the old one may be gone
  const all = tag === null ? about.pictures : tags[tag].count;
  const shown = `${results.length} of ${all.toLocaleString("en")} pictures`;
  const tagged = tag === null ? "" : ` with the tag “${tags[tag].label}”`;
  const order = results[0]?.score == null ? "" : ", the most similar first";
  $("found").textContent = shown + tagged + order;
  $("time").textContent = `embedding ${embed_ms} ms · search ${search_ms} ms`;
}

function makeTile(result) {
  const item = document.createElement("li");
  item.innerHTML =
    '<button type="button" class="tile"><img loading="lazy" decoding="async"><span>More like this</span>' +
    '</button><p class="name"></p><p class="facts"><span class="score"></span><span class="tag"></span></p>';
  const [button, image] = item.querySelectorAll("button, img");
  image.alt = result.name;
  image.src = `/thumbnail/${result.row}`;
  button.addEventListener("click", () => moreLike(result));
  button.addEventListener("focus", () => current(button));
  item.querySelector(".name").textContent = result.name;
  item.querySelector(".name").title = result.path;
  return item;
}

function updateTile(item, result) {
  item.querySelector(".score").textContent = result.score?.toFixed(3) ?? "";
  item.querySelector(".tag").textContent = tags[result.tag]?.label ?? "";
  item.querySelector(".tag").hidden = result.tag === null;
}

function showTags(answer) {
  const filter = tags[tag]?.label;
  tags = answer.tags;
  const same = tags.findIndex((entry) => entry.label === filter);
  $("tags").replaceChildren(
    ...tags.map(({ label, count }, number) => {
      const item = document.createElement("li");
      item.innerHTML = '<button type="button"> <span></span></button>';
      item.firstChild.prepend(label);
      item.querySelector("span").textContent = count.toLocaleString("en");
      item.firstChild.addEventListener("click", () => filterBy(tag === number ? null : number));
      return item;
    }),
  );
  filterBy(same < 0 ? null : same);
}

function filterBy(number) {
  tag = number;
  $("tags").querySelectorAll("button").forEach((button, i) => button.setAttribute("aria-pressed", i === tag));
  search();
}

// --- keyboard -----------------------------------------------------------------------------------

const buttons = () => [...$("results").querySelectorAll(".tile")];

/** Make one result the one that Tab reaches; arrow keys lead to the others. */
function current(button) {
  buttons().forEach((other) => (other.tabIndex = other === button ? 0 : -1));
}

function columns() {
  const all = buttons();
  const top = (button) => button.getBoundingClientRect().top;
  const second = all.findIndex((button) => top(button) !== top(all[0]));
  return second < 0 ? all.length : second;
}

function move(event) {
  const all = buttons();
  const here = all.indexOf(document.activeElement);
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns() };
  if (here < 0 || !(event.key in steps)) return;
  event.preventDefault();
  const there = here + steps[event.key];
  if (there < 0 && event.key === "ArrowUp") $("text").focus();
  else all[there]?.focus();
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=range]), textarea");
  if (event.key === "/" && !typing) {
    event.preventDefault();
    $("text").select();
  } else if (event.target === $("text") && event.key === "ArrowDown") {
    event.preventDefault();
    buttons()[0]?.focus();
  } else if (event.key === "Escape" && event.target !== $("labels")) {
    $("text").value = "";
    $("text").focus();
    search();
  } else {
    move(event);
  }
});

// --- what the user does -------------------------------------------------------------------------

for (const id of ["text", "without", "weight", "count"]) {
  $(id).addEventListener("input", debounced(TYPING_MS, search));
}
$("sentence").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
$("labels").addEventListener("input", debounced(LABELS_MS, countTags));
$("count").addEventListener("input", () => ($("count-value").value = $("count").value));
$("remove").addEventListener("click", () => choose(null));
$("file").addEventListener("change", () => {
  if ($("file").files[0]) send($("file").files[0]);
  $("file").value = ""; // so that the same file can be chosen again
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files[0]) send(event.clipboardData.files[0]);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  if (event.dataTransfer.files[0]) send(event.dataTransfer.files[0]);
});

const narrow = matchMedia("(max-width: 760px)");
const fold = () => ($("options").open = !narrow.matches);
narrow.addEventListener("change", fold);
fold();
search();
