// Refreshes the page's content when the node applied something; leaves a field that is being typed in alone.
"use strict";
(() => {
  const live = document.getElementById("live");
  let busy = false;
  const refresh = async () => {
    const typing = document.activeElement instanceof HTMLInputElement;
    if (busy || typing || document.hidden) return;
    busy = true;
    try {
      const answer = await fetch(location.href);
      if (!answer.ok || answer.redirected) return;
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
      const main = document.querySelector("main");
      if (fresh && main) main.replaceChildren(...fresh.childNodes);
    } finally {
      busy = false;
    }
  };
  if (location.pathname === "/login") { live.hidden = true; return; }
  const events = new EventSource("/events?of=" + encodeURIComponent(location.pathname));
  events.onmessage = refresh;
  events.onopen = () => { live.textContent = "live"; live.className = ""; };
  events.onerror = () => { live.textContent = "not connected"; live.className = "off"; };
})();
