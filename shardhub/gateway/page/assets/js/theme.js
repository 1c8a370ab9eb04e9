// Runs before the first paint, so that a dark page does not flash light. Not a module, because modules are deferred.
"use strict";
(() => {
  const KEY = "shardhub.theme";
  const system = matchMedia("(prefers-color-scheme: dark)");
  const read = () => {
    try {
      const found = localStorage.getItem(KEY);
      return found === "dark" || found === "light" ? found : "system";
    } catch {
      return "system";
    }
  };
  let choice = read();
  const apply = () => {
    const theme = choice === "system" ? (system.matches ? "dark" : "light") : choice;
    document.documentElement.dataset.theme = theme;
    dispatchEvent(new CustomEvent("themechange"));
  };
  apply();
  system.addEventListener("change", apply);
  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const label = () => {
      const names = { system: "as the system", dark: "dark", light: "light" };
      button.setAttribute("aria-label", `Theme: ${names[choice]}`);
      button.title = `Theme: ${names[choice]}`;
    };
    label();
    button.addEventListener("click", () => {
      // First to the theme not shown now, then to the other one, then back to the system's.
      const other = system.matches ? "light" : "dark";
      const own = system.matches ? "dark" : "light";
      choice = choice === "system" ? other : choice === other ? own : "system";
      try {
        if (choice === "system") localStorage.removeItem(KEY);
        else localStorage.setItem(KEY, choice);
      } catch { /* a browser that keeps nothing: the choice holds until the page closes */ }
      apply();
      label();
    });
  });
})();
