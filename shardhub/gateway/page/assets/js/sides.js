// The side panels of the page, which slide over it in narrow windows.
import { $ } from "./dom.js";

let open = null;

/** Close the open side panel. Returns whether one was open. */
export function closeSide() {
  if (!open) return false;
  const { side, button } = open;
  open = null;
  side.classList.remove("open");
  $("backdrop").hidden = true;
  button.setAttribute("aria-expanded", "false");
  for (const other of others(side)) other.inert = false;
  button.focus();
  return true;
}

/** Open a side panel over the page. If it is beside the page already, only move the focus to it. */
export function openSide(side, button) {
  if (open) closeSide();
  if (getComputedStyle(side).position !== "fixed") {
    side.focus();
    return;
  }
  open = { side, button };
  side.classList.add("open");
  $("backdrop").hidden = false;
  button.setAttribute("aria-expanded", "true");
  for (const other of others(side)) other.inert = true;
  side.querySelector(".close-side").focus();
}

const others = (side) => [...$("app").children].filter((child) => child !== side);

export function setUpSides() {
  for (const [side, button] of [[$("list"), $("open-list")], [$("chain"), $("open-chain")]]) {
    button.addEventListener("click", () => openSide(side, button));
    side.querySelector(".close-side").addEventListener("click", closeSide);
  }
  $("backdrop").addEventListener("click", closeSide);
  addEventListener("resize", () => {
    if (open && getComputedStyle(open.side).position !== "fixed") closeSide();
  });
}
