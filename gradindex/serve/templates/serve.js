
// ---- The live page: it asks, shows how far the answer is, and keeps its state in the address. ----
const form = document.getElementById("ask");
const place = document.getElementById("answer");
const view = document.body.dataset.view;
const ANSWERS = {query: "/answer", groups: "/answer", compare: "/compare/answer", common: "/common/answer", health: "/verify"};
const isPicture = ["query", "compare", "groups"].includes(view);
let upload = "";
let asking = null;

// The address has what differs from the form as it came.
function state() {
  const fields = new URLSearchParams();
  for (const element of form.elements) {
    if (!element.name || element.disabled) continue;
    if (element.name === "index") {
      if (element.selectedIndex > 0) fields.set("index", element.value);
      continue;
    }
    const isBox = element.type === "checkbox";
    const before = isBox ? element.defaultChecked : element.tagName === "SELECT"
      ? (element.querySelector("[selected]") ?? element.options[0]).value : element.defaultValue;
    const now = isBox ? element.checked : element.value;
    if (now !== before && (isBox ? now : element.value.trim() !== "")) fields.set(element.name, element.value);
  }
  if (document.getElementById("no-prompt")?.checked) fields.set("prompt", "");
  if (isPicture && !fields.has("training") && upload) fields.set("upload", upload);
  return fields;
}

function restore() {
  const fields = new URLSearchParams(location.search);
  form.reset();
  for (const element of form.elements) {
    if (!element.name || !fields.has(element.name)) continue;
    if (element.type === "checkbox") element.checked = true;
    else element.value = fields.get(element.name);
  }
  upload = fields.get("upload") ?? "";
  const box = document.getElementById("no-prompt");
  if (box) box.checked = fields.get("prompt") === "";
  const more = form.querySelector(".more");
  if (more) more.open ||= [...more.querySelectorAll("[name]")].some((element) => fields.has(element.name));
  preview();
  return isPicture ? fields.has("training") || upload !== "" : fields.has("go");
}

function preview() {
  const image = document.getElementById("preview");
  if (!image) return;
  const training = form.elements.training.value.trim();
  image.hidden = !training && !upload;
  if (training) image.src = pictureOf(training);
  else if (upload) image.src = "/uploads/" + encodeURIComponent(upload);
  image.onload = () => image.classList.toggle("small", image.naturalWidth < 112);
  image.onerror = () => (image.hidden = true);
}

function pictureOf(id, served) {
  const fields = new URLSearchParams({id});
  const index = served ?? document.querySelector("[name=index]")?.value;
  if (index) fields.set("index", index);
  return "/api/training/picture?" + fields;
}

function tell(text) {
  const problem = document.getElementById("problem");
  problem.textContent = text;
  problem.hidden = !text;
}

function showProgress(job) {
  const box = document.getElementById("progress");
  box.hidden = !job;
  place.classList.toggle("old", Boolean(job));
  if (!job) return;
  const bar = box.querySelector("progress");
  if (job.total) [bar.max, bar.value] = [job.total, job.done];
  else bar.removeAttribute("value");
  const waiting = job.ahead ? `waiting for ${job.ahead} question${job.ahead > 1 ? "s" : ""} before` : "";
  box.querySelector("span").textContent = waiting || (job.total ? `${job.title} ${job.done} of ${job.total}` : "asking …");
}

async function ask(fields) {
  asking?.abort();
  const own = (asking = new AbortController());
  tell("");
  showProgress({});
  try {
    const sent = new URLSearchParams(fields);
    sent.delete("go");
    if (view === "groups") {
      sent.set("view", "groups");
      if (!sent.has("group_by")) sent.set("group_by", form.elements.group_by.value);
    }
    const response = await fetch(`${ANSWERS[view]}?${sent}`, {signal: own.signal});
    if (!response.ok) throw new Error((await response.json()).detail);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const {value, done} = await reader.read();
      text += value ?? "";
      const lines = text.split("\n");
      text = lines.pop();
      for (const line of lines) take(JSON.parse(line), sent);
      if (done) break;
    }
  } catch (error) {
    if (own.signal.aborted) return;
    place.replaceChildren();
    tell(error.message);
  }
  if (own === asking) showProgress(null);
}

function take(message, fields) {
  if (message.error !== undefined) throw new Error(message.error);
  if (message.html === undefined) return showProgress(message);
  place.innerHTML = message.html;
  const controls = place.querySelector(".controls");
  if (controls && view === "query") {
    const link = document.createElement("a");
    [link.href, link.textContent, link.download] = ["/report?" + fields, "Report", "gradindex.html"];
    controls.append(link);
  }
  remember();
  mark();
}

function go(replaces = false) {
  const fields = state();
  if (!isPicture) fields.set("go", "1");
  if (`?${fields}` !== location.search) {
    history[replaces ? "replaceState" : "pushState"](null, "", fields.size ? `?${fields}` : location.pathname);
  }
  links();
  if (!isPicture || fields.has("training") || fields.has("upload")) ask(fields);
}

// The other views ask about the same picture.
function links() {
  const fields = new URLSearchParams(location.search);
  for (const link of all(".tabs a")) {
    const kept = new URLSearchParams();
    for (const name of ["index", "upload", "training", "prompt", "class_label"]) {
      if (fields.has(name)) kept.set(name, fields.get(name));
    }
    link.search = kept.size ? `?${kept}` : "";
  }
}

async function takeFile(file) {
  tell("");
  const data = new FormData();
  data.set("picture", file);
  try {
    const response = await fetch("/uploads", {method: "POST", body: data});
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.detail);
    upload = answer.upload;
    form.elements.training.value = "";
    const prompt = form.elements.prompt;
    if (prompt) prompt.placeholder = answer.prompt ?? "that the picture was generated with";
    preview();
    go();
  } catch (error) {
    place.replaceChildren();
    tell(error.message);
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  go();
});
form.addEventListener("change", (event) => {
  if (event.target.id === "file") {
    const [file] = event.target.files;
    if (file) takeFile(file);
    event.target.value = "";
  } else if (isPicture && form.checkValidity()) {
    if (event.target.name === "training") preview();
    go();
  }
});
on("change", "[name=index]", (select) => {
  // Ids and fields are those of an index.
  location.search = new URLSearchParams({index: select.value, ...(upload && {upload})});
});
form.addEventListener("input", async ({target}) => {
  if (target.name !== "training") return;
  const fields = new URLSearchParams({like: target.value});
  const index = document.querySelector("[name=index]");
  if (index) fields.set("index", index.value);
  const ids = await (await fetch("/ids?" + fields)).json();
  if (target.value !== fields.get("like")) return;  // more was typed meanwhile
  document.getElementById("ids").replaceChildren(...ids.map((id) => new Option(id, id)));
});

// A picture may be dropped anywhere.
const drop = document.querySelector(".drop");
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    if (!drop) return;
    event.preventDefault();
    drop.classList.toggle("over", name === "dragover");
    const file = name === "drop" && event.dataTransfer.files[0];
    if (file) takeFile(file);
  });
}

// ---- The drawer: one training picture. ----
const listed = () => JSON.parse(document.getElementById("data")?.textContent ?? '{"answers": []}').answers
  .flatMap((answer) => answer.queries.flatMap((query) => [...query.hits, ...(query.opponents ?? [])]));

function node(tag, text, className = "") {
  const element = document.createElement(tag);
  [element.textContent, element.className] = [text, className];
  return element;
}

closer.addEventListener("shown", async ({detail: hit}) => {
  const inside = closer.querySelector("div");
  const found = listed().find((one) => one.row === Number(hit.dataset.row));
  if (!found) return;
  const {id, served} = found;
  const isOther = served !== undefined && served !== (document.querySelector("[name=index]")?.value ?? served);
  const image = inside.querySelector("img");
  if (image) {
    image.src = pictureOf(id, served);
    image.style.background = "none";
  }
  inside.querySelector(".lists")?.remove();  // of a page with many cards
  closer.style.setProperty("--stroke", getComputedStyle(hit).getPropertyValue("--stroke"));
  const drawer = node("div", "", "drawer");
  const steps = hit.querySelector("svg title")?.textContent;
  if (steps) drawer.append(node("p", "Score " + steps.replace("by timestep ", "by timestep: "), "soft"));
  const acts = node("div", "", "acts");
  const search = node("a", "Search from this", "do");
  const fields = new URLSearchParams(location.search);
  for (const name of ["upload", "prompt", "class_label", "go", "other", "other_method"]) fields.delete(name);
  if (isOther) fields.set("index", served);
  fields.set("training", id);
  search.href = "/?" + fields;
  search.title = "Take it as if it were generated: whose gradients are like its own, whom else it influences";
  const exclude = node("button", excluded().includes(id) ? "Do not exclude" : "Exclude");
  exclude.type = "button";
  exclude.title = "On a list that stays in this browser, for gradindex remove; the index stays as it is";
  exclude.addEventListener("click", () => {
    toggle(id);
    exclude.textContent = excluded().includes(id) ? "Do not exclude" : "Exclude";
  });
  acts.append(search, ...(isOther ? [] : [exclude]));  // the list is of one index
  drawer.append(acts);
  const others = history_of().filter((one) => one.ids.includes(id) && one.search !== location.search);
  if (others.length) {
    const text = node("p", "In this tab it was also in the lists of ", "soft");
    others.forEach((one, number) => {
      const link = node("a", one.name);
      link.href = "/" + one.search;
      text.append(number ? ", " : "", link);
    });
    drawer.append(text);
  }
  inside.append(drawer);
  const answer = await fetch(pictureOf(id, served).replace("/picture?", "?"));
  if (!answer.ok) return;
  const facts = await answer.json();
  inside.querySelector(".caption")?.remove();
  if (facts.caption) drawer.prepend(node("p", facts.caption, "caption"));
  if (facts.class_label !== null) drawer.prepend(node("p", `class label ${facts.class_label}`, "soft"));
});

// What this tab asked before, and which pictures were named.
const history_of = () => JSON.parse(sessionStorage.getItem("asked") ?? "[]");
function remember() {
  if (view !== "query") return;
  const data = document.getElementById("data");
  if (!data) return;
  const name = JSON.parse(data.textContent).answers[0].queries[0].picture;
  const ids = [...new Set(listed().map((hit) => hit.id))];
  const others = history_of().filter((one) => one.name !== name);
  sessionStorage.setItem("asked", JSON.stringify([{name, search: location.search, ids}, ...others].slice(0, 30)));
}

// ---- The list of pictures to exclude, for `gradindex remove --file`; it stays in this browser. ----
const key = "excluded " + document.body.dataset.path;
const excluded = () => JSON.parse(localStorage.getItem(key) ?? "[]");
function keep(ids) {
  localStorage.setItem(key, JSON.stringify(ids));
  mark();
}
const toggle = (id) => keep(excluded().includes(id) ? excluded().filter((one) => one !== id) : [...excluded(), id]);

function mark() {
  const ids = excluded();
  const bar = document.getElementById("excluded");
  bar.hidden = !ids.length;
  bar.querySelector("span").textContent = `${ids.length} picture${ids.length === 1 ? "" : "s"} to exclude`;
  bar.querySelector("code").textContent = "gradindex remove INDEX --file exclude.txt";
  const names = new Set(ids);
  const idOfRow = new Map(listed().map((hit) => [hit.row, hit.id]));
  for (const hit of all("#answer .hit")) hit.classList.toggle("out", names.has(idOfRow.get(Number(hit.dataset.row))));
}
on("click", "[data-list]", (button) => {
  if (button.dataset.list === "clear") return keep([]);
  const lines = excluded().filter((id) => !/[\r\n]/.test(id)).map((id) => id + "\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(lines, {type: "text/plain"}));
  link.download = "exclude.txt";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
});
addEventListener("storage", mark);

function open() {
  closer.open && closer.close();
  const asks = restore();
  links();
  if (asks) ask(new URLSearchParams(location.search));
  else place.replaceChildren();
}
addEventListener("popstate", open);
open();
mark();
