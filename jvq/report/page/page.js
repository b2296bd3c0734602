"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // Light or dark: the system's choice until the button is pressed; kept where the browser keeps anything for files.
  const store = {
    get: () => { try { return localStorage.getItem("jvq-theme"); } catch { return null; } },
    set: (value) => { try { localStorage.setItem("jvq-theme", value); } catch { /* only for this time */ } },
  };
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const theme = document.getElementById("theme");
  const label = () => { theme.textContent = dark() ? "light" : "dark"; };
  if (["light", "dark"].includes(store.get())) root.dataset.theme = store.get();
  theme.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    store.set(root.dataset.theme);
    label();
  });
  system.addEventListener("change", label);
  label();

  // Sorting: by numbers where a column has them, largest first; once more: the other way; once more: as it was.
  const value = (row, place) => {
    const cell = row.cells[place];
    return cell.dataset.key || cell.textContent.trim();
  };
  const order = (rows, place, numbers, sign) => {
    const keyed = rows.map((row) => {
      const text = value(row, place);
      return [numbers ? parseFloat(text.replaceAll(",", "")) : text, row];
    });
    const empty = (x) => (numbers ? Number.isNaN(x) : x === "");
    keyed.sort(([a], [b]) => {
      if (empty(a) || empty(b)) return empty(a) - empty(b); // what has no value stays below
      return sign * (numbers ? a - b : a.localeCompare(b, undefined, { numeric: true }));
    });
    return keyed.map(([, row]) => row);
  };
  for (const table of all("table.sorts")) {
    const body = table.tBodies[0];
    const original = [...body.rows];
    const heads = all("thead th", table);
    heads.forEach((head, place) => {
      const numbers = head.classList.contains("number");
      const ways = numbers ? ["descending", "ascending", "none"] : ["ascending", "descending", "none"];
      head.querySelector("button").addEventListener("click", () => {
        const way = ways[(ways.indexOf(head.ariaSort || "none") + 1) % 3];
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", way);
        table.toggleAttribute("data-sorted", way !== "none");
        body.append(...(way === "none" ? original : order(original, place, numbers, way === "ascending" ? 1 : -1)));
      });
    });
  }

  // Filtering by the first cell: a glob where there is a * ? or [ in it, else a part of the address.
  const matcher = (text) => {
    if (!/[*?[]/.test(text)) return (name) => name.toLowerCase().includes(text.toLowerCase());
    let pattern = "";
    for (let i = 0; i < text.length; i++) {
      const close = text[i] === "[" ? text.indexOf("]", i + 2) : -1;
      if (text[i] === "*") pattern += ".*";
      else if (text[i] === "?") pattern += ".";
      else if (close > 0) {
        const inside = text.slice(i + 1, close).replace(/[\\\]^]/g, "\\$&");
        pattern += "[" + (inside[0] === "!" ? "^" + inside.slice(1) : inside) + "]";
        i = close;
      } else pattern += text[i].replace(/[\\^$.|+()[\]{}]/g, "\\$&");
    }
    try {
      const compiled = new RegExp(`^${pattern}$`);
      return (name) => compiled.test(name);
    } catch {
      return () => false; // such as [z-a]
    }
  };
  for (const input of all("input.filters")) {
    const box = input.closest(".filter");
    const rows = [...box.parentElement.querySelector("table.sites").tBodies[0].rows];
    const names = rows.map((row) => row.cells[0].textContent.trim());
    const said = box.querySelector("output");
    input.addEventListener("input", () => {
      const matches = matcher(input.value.trim());
      let shown = 0;
      rows.forEach((row, i) => {
        row.hidden = !matches(names[i]);
        shown += !row.hidden;
      });
      said.textContent = `${shown} of ${rows.length}`;
    });
  }

  // Copying: the clipboard where a page may have it, else the selection.
  for (const button of all("button.copy")) {
    const code = button.parentElement.querySelector("code");
    const selected = () => {
      getSelection().selectAllChildren(code);
      return document.execCommand("copy");
    };
    button.addEventListener("click", async () => {
      let copied = false;
      try {
        await navigator.clipboard.writeText(code.textContent);
        copied = true;
      } catch {
        copied = selected();
      }
      button.textContent = copied ? "Copied" : "Selected";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }

  // A link into a closed section opens it; printing opens all of them.
  const reveal = () => {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const inside = target && target.querySelector(":scope > details");
    if (inside) inside.open = true;
  };
  addEventListener("hashchange", reveal);
  for (const link of all("nav a")) link.addEventListener("click", () => setTimeout(reveal));
  reveal();
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = all("details:not([open])");
    closed.forEach((details) => { details.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((details) => { details.open = false; }));
})();
