// The page works without this. With it, a form or link that names parts of a page (data-parts) has only
// these loaded and put in place, and says to screen readers what came.
"use strict";

const here = () => location.pathname + location.search;
let shown = here();
let newest = 0;

const replace = async (origin, address, isForm) => {
  const parts = origin.dataset.parts.split(" ");
  document.getElementById(parts.at(-1)).setAttribute("aria-busy", "true");
  const turn = ++newest;
  let answer;
  try {
    const response = await fetch(address);
    answer = new DOMParser().parseFromString(await response.text(), "text/html");
  } catch {
    answer = null;
  }
  if (turn !== newest) return; // something else was asked meanwhile
  if (!parts.every((id) => answer?.getElementById(id))) {
    location.assign(address); // another page, such as the login or an error: show it as it is
    return;
  }
  for (const id of parts) document.getElementById(id).replaceWith(answer.getElementById(id));
  history.pushState(null, "", address);
  shown = here();
  const place = document.getElementById(parts.at(-1));
  const said = document.querySelector("#errors h2") ?? place.querySelector("[data-say]");
  document.getElementById("status").textContent = said?.textContent.trim() ?? "";
  if (!isForm) place.querySelector("[tabindex]")?.focus();
  else if (matchMedia("(max-width: 46rem)").matches) (said ?? place).parentElement.scrollIntoView();
};

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (!form.dataset.parts) return;
  event.preventDefault();
  const filled = [...new FormData(form)].filter(([, value]) => value);
  const custom = form.elements.range.value === "custom";
  const asked = filled.filter(([name]) => custom || (name !== "from" && name !== "to"));
  replace(form, `${form.action}?${new URLSearchParams(asked)}`, true);
});

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-parts]");
  if (!link || event.button || event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  replace(link, link.href, false);
});

addEventListener("popstate", () => {
  if (here() !== shown) location.reload(); // not if only the place in the page changed
});

const zone = document.querySelector("input[name=zone]");
if (zone) zone.value = Intl.DateTimeFormat().resolvedOptions().timeZone;

// The same moment in all charts.
document.addEventListener("pointerover", (event) => {
  const column = event.target.closest?.("rect.column");
  const index = column ? [...column.parentNode.querySelectorAll("rect.column")].indexOf(column) : -1;
  for (const chart of document.querySelectorAll("figure.chart")) {
    const columns = chart.querySelectorAll("rect.column");
    columns.forEach((other, place) => other.classList.toggle("shown", place === index));
    const summary = chart.querySelector(".summary");
    summary.dataset.all ??= summary.textContent;
    summary.textContent = index < 0 ? summary.dataset.all : columns[index].textContent;
  }
});
