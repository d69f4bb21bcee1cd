// Keeps a page live: when the server says that something changed, the parts marked data-live are fetched
// again and exchanged. Without it every page works, it only stands still.
"use strict";
(() => {
  const live = document.getElementById("live");
  const ago = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "narrow" });
  const steps = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];

  function relative(at) {
    const seconds = (Date.parse(at) - Date.now()) / 1000;
    if (Math.abs(seconds) < 1.5) return "now";
    const [unit, length] = steps.find(([, length]) => Math.abs(seconds) >= length) || steps[3];
    return ago.format(Math.round(seconds / length), unit);
  }

  function tell() {
    for (const time of document.querySelectorAll("time[datetime]")) {
      if (!time.title) time.title = time.dateTime;
      time.textContent = relative(time.dateTime);
    }
  }

  async function refresh() {
    const old = document.querySelector("[data-live]");
    if (!old || document.hidden) return;
    const open = [...old.querySelectorAll("details")].map((details) => details.open);
    const answer = await fetch(location.href, { headers: { accept: "text/html" } });
    if (!answer.ok || answer.redirected) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.querySelector("[data-live]");
    if (!fresh || old.contains(document.activeElement) && document.activeElement !== document.body) return;
    fresh.querySelectorAll("details").forEach((details, n) => { details.open = !!open[n]; });
    old.replaceWith(document.adoptNode(fresh));
    tell();
  }

  tell();
  setInterval(tell, 1000);
  if (!document.querySelector("[data-live]")) return;
  const events = new EventSource("/events");
  events.onopen = () => { live.textContent = "live"; live.className = "live on"; };
  events.onerror = () => { live.textContent = "reconnecting"; live.className = "live"; };
  events.addEventListener("change", () => { refresh().catch(() => {}); });
  document.addEventListener("visibilitychange", () => { refresh().catch(() => {}); });
})();
