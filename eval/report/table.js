// Builders for elements, and the ranking table's sorting. Text enters the page as text nodes only, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}

const html = (tag, attributes = {}, ...children) => build(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  build(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const field = (id) => document.getElementById(id);

const swatch = (model) => html("span", { class: `swatch ${model.colour}` });

function sortTable(table, head, descending) {
  const key = head.dataset.key;
  const value = (row) => row.querySelector(`[data-key="${key}"]`).dataset.value;
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === ""); // what is not known goes last, either way
    const order = key === "name" ? a.localeCompare(b, "en", { numeric: true }) : Number(a) - Number(b);
    return descending ? -order : order;
  };
  for (const body of table.tBodies) { // ranked, not ranked, floors: each is sorted within itself, under its heading
    const rows = [...body.rows].filter((row) => !row.classList.contains("group"));
    body.append(...rows.sort((a, b) => compare(value(a), value(b))));
  }
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
}

for (const button of document.querySelectorAll("#ranking-table thead button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const before = head.getAttribute("aria-sort");
    sortTable(head.closest("table"), head, before ? before === "ascending" : button.dataset.first === "descending");
  });
}
