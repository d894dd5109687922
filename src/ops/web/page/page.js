// What makes the page live. Without it everything works, and is as old as its last load.
//
// The server tells of changes (server-sent events); each is a sign to fetch this page once more. What came is put in node by
// node, so that focus, half-written reasons, opened folds and the scroll's place stay as they are.
(() => {
  "use strict";
  const main = document.getElementById("main");
  const pulse = document.getElementById("pulse");
  const RETRY_MS = 5000;
  let source = null, busy = false, again = false, timer = 0;

  const say = (word) => {
    pulse.hidden = false;
    if (pulse.textContent !== word) pulse.textContent = word;
  };

  // What is parked has no events, but somebody may retry it.
  const wait = () => {
    clearTimeout(timer);
    const every = Number(main.dataset.poll);
    if (every && !document.hidden) timer = setTimeout(look, every);
  };

  const open = () => {
    wait();
    if (source || document.hidden || !main.dataset.events) return;
    source = new EventSource(main.dataset.events);
    source.onopen = () => say("● live");
    source.onerror = () => {
      if (!source) return;
      say("○ not connected; trying again");
      if (source.readyState !== EventSource.CLOSED) return; // it tries by itself
      close();
      setTimeout(open, RETRY_MS);
    };
    for (const name of ["progress", "overview"]) source.addEventListener(name, look);
  };

  const close = () => {
    if (source) source.close();
    source = null;
  };

  // One look at a time, and never more than a quarter of the time: a page that takes long is looked at less often.
  const look = async () => {
    if (busy) { again = true; return; }
    busy = true;
    const began = performance.now();
    try {
      const answer = await fetch(location.href, { headers: { "Cliquet-Live": "1" } });
      if (answer.redirected) {
        close();
        say("○ your session has ended; load this page again");
      } else if (answer.ok) {
        show(new DOMParser().parseFromString(await answer.text(), "text/html"));
      }
    } catch {
      say("○ not connected; trying again");
    }
    setTimeout(() => {
      busy = false;
      wait();
      if (again) { again = false; look(); }
    }, Math.max(Number(main.dataset.pause) || 0, 3 * (performance.now() - began)));
  };

  const show = (fresh) => {
    const content = fresh.getElementById("main");
    if (!content) return;
    if (document.title !== fresh.title) document.title = fresh.title;
    morph(main, content);
    if (main.dataset.events) return open();
    close();
    say(main.dataset.poll ? "● live" : "● over");
  };

  // Whether people open a fold, tick a box or write is theirs to say.
  const THEIRS = { DETAILS: ["open"], INPUT: ["value", "checked"] };

  const morph = (old, fresh) => {
    const theirs = THEIRS[old.nodeName] || [];
    for (const { name, value } of [...fresh.attributes]) {
      if (!theirs.includes(name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    for (const { name } of [...old.attributes]) {
      if (!theirs.includes(name) && !fresh.hasAttribute(name)) old.removeAttribute(name);
    }
    let place = old.firstChild;
    for (const wanted of [...fresh.childNodes]) {
      const found = match(place, wanted);
      if (!found) {
        old.insertBefore(document.importNode(wanted, true), place);
        continue;
      }
      while (place !== found) {
        const next = place.nextSibling;
        place.remove();
        place = next;
      }
      if (found.nodeType === Node.ELEMENT_NODE) morph(found, wanted);
      else if (found.data !== wanted.data) found.data = wanted.data;
      place = found.nextSibling;
    }
    while (place) {
      const next = place.nextSibling;
      place.remove();
      place = next;
    }
  };

  // The node that is already there: the one of the same id, or else the next of the same sort before any that has an id.
  const match = (place, wanted) => {
    for (let node = place; node; node = node.nextSibling) {
      const same = node.nodeName === wanted.nodeName;
      if (wanted.id) {
        if (same && node.id === wanted.id) return node;
      } else {
        if (node.id) return null;
        if (same && node.className?.baseVal === wanted.className?.baseVal) return node;
      }
    }
    return null;
  };

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return close();
    open();
    if (source) look();
  });
  window.addEventListener("pagehide", close);
  window.addEventListener("pageshow", open);
  open();
})();
