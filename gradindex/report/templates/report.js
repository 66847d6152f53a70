"use strict";
const all = (selector) => [...document.querySelectorAll(selector)];

// Cards may come after this script has run, so it is the page that listens.
function on(event, selector, act) {
  document.addEventListener(event, ({target}) => {
    const element = target.closest?.(selector);
    if (element) act(element);
  });
}

// Only the pictures of one group are shown in full.
on("change", "#group", (group) => {
  for (const hit of all(".hit")) {
    hit.classList.toggle("off", group.value !== "" && hit.dataset.group !== group.value);
  }
});

// Answers as files.
function cell(value) {
  let text = value === null || value === undefined ? "" : Array.isArray(value) ? value.join("; ") : String(value);
  // A spreadsheet would run a name that begins like a formula.
  if (typeof value !== "number" && /^[=+\-@\t\r]/.test(text)) text = "'" + text;
  return /[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
}

function csv(data) {
  const fields = ["rank", "id", "row", "score", "stderr", "z", "pixel", "embedding", "duplicates", "caption"];
  const lines = [["picture", "method", "list", ...fields]];
  for (const answer of data.answers) {
    for (const query of answer.queries) {
      for (const [list, hits] of [["proponents", query.hits], ["opponents", query.opponents]]) {
        for (const hit of hits ?? []) {
          lines.push([query.picture, answer.method, list, ...fields.map((name) => hit[name])]);
        }
      }
    }
  }
  return lines.map((line) => line.map(cell).join(",") + "\r\n").join("");
}

function save(kind) {
  const data = JSON.parse(document.getElementById("data").textContent);
  const text = kind === "csv" ? "\ufeff" + csv(data) : JSON.stringify(data, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: kind === "csv" ? "text/csv" : "application/json"}));
  link.download = "gradindex." + kind;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
on("click", "[data-save]", (button) => save(button.dataset.save));

// A picture from nearer; left and right go on to the next.
const closer = document.getElementById("closer");
let shown = null;
function show(hit) {
  if (!hit) return;
  shown = hit;
  const place = closer.querySelector("div");
  place.className = hit.closest(".row").className.replace("row", "closer");
  const parts = [...hit.cloneNode(true).children];
  const image = hit.querySelector("img, .gone").cloneNode(true);
  const lists = document.createElement("p");
  lists.className = "lists";
  const cards = new Set(all(`.hit[data-row="${hit.dataset.row}"]`).map((one) => one.closest(".card")));
  const named = cards.size === 1 ? "only of this picture." : `of ${cards.size} of the pictures on this page.`;
  lists.textContent = "It is in lists " + named;
  place.replaceChildren(image, ...parts.slice(1), lists);
  if (!closer.open) closer.showModal();
  closer.dispatchEvent(new CustomEvent("shown", {detail: hit}));
}
on("click", ".hit button, .hit > .named", (element) => show(element.closest(".hit")));
closer?.addEventListener("keydown", (event) => {
  if (event.key === "ArrowRight") show(shown.nextElementSibling);
  if (event.key === "ArrowLeft") show(shown.previousElementSibling);
});
closer?.addEventListener("click", (event) => {
  if (event.target === closer) closer.close();
});

// Paper has no folds to open.
for (const [event, isOpen] of [["beforeprint", true], ["afterprint", false]]) {
  addEventListener(event, () => all(".reading").forEach((fold) => (fold.open = isOpen)));
}
