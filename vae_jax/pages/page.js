// What the scripts of a page share: its data, its elements, and how numbers are written.
"use strict";

const Page = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const make = (name, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };
  const rounded = (number, digits = 2) => {
    const text = number.toFixed(digits);
    return text.replace("-", Number(text) ? "−" : "");
  };
  const counted = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
  return { data, at, make, rounded, counted };
})();
