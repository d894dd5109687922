// What makes the page live. Without it everything works, and is as old as its last load.
//
// The server tells of changes (server-sent events); each is a sign to fetch this page once more. What came is put in node by
// node, so that focus, half-written reasons, opened folds and the scroll's place stay as they are.
(() => {
  "use strict";
  const main = document.getElementById("main");
  const foot = document.querySelector("footer");
  const pulse = document.getElementById("pulse");
  const age = document.getElementById("age");
  const RETRY_MS = 5000;
  let source = null, busy = false, again = false, timer = 0;
  // What is wrong, in words; from when what is shown is; whether the server itself sees nothing; whether there is no use in looking.
  let trouble = "", seen = Date.now(), blind = false, ended = false;

  // The sentence is read out when it changes; how old everything is stands beside it and only ticks.
  const say = () => {
    const live = main.dataset.events || main.dataset.poll;
    const words = trouble ? `○ not up to date: ${trouble}` : live ? "● live" : "● over";
    if (pulse.textContent !== words) pulse.textContent = words;
    foot.classList.toggle("stale", trouble !== "");
    const seconds = Math.round((Date.now() - seen) / 1000);
    age.hidden = !trouble;
    age.textContent = trouble && `as of ${new Date(seen).toISOString().slice(11, 19)} UTC, ${seconds} s ago`;
  };
  setInterval(() => { if (trouble) say(); }, 1000);

  const fail = (words) => {
    trouble = words;
    say();
    wait();
  };

  const end = () => {
    ended = true;
    close();
    fail("your session has ended; load this page again");
  };

  // What is parked has no events, but somebody may retry it; and a server that saw nothing tells only of changes.
  const wait = () => {
    clearTimeout(timer);
    const every = trouble || blind ? RETRY_MS : Number(main.dataset.poll);
    if (every && !ended && !document.hidden) timer = setTimeout(look, every);
  };

  const open = () => {
    wait();
    if (source || ended || document.hidden || !main.dataset.events) return;
    source = new EventSource(main.dataset.events);
    // After trouble, the first event and the look that it brings say that all is well.
    source.onopen = say;
    source.onerror = () => {
      if (!source) return;
      const closed = source.readyState === EventSource.CLOSED;
      fail("not connected; trying again");
      if (!closed) return; // it tries by itself
      close();
      setTimeout(open, RETRY_MS);
      look(); // which says why
    };
    for (const name of ["progress", "overview"]) {
      source.addEventListener(name, () => {
        blind = false;
        look();
      });
    }
    source.addEventListener("unavailable", (event) => {
      let told = {};
      blind = true;
      try { told = JSON.parse(event.data); } catch { /* then without the reason */ }
      fail(told.error || "the server cannot look either");
    });
  };

  const close = () => {
    if (source) source.close();
    source = null;
    blind = false;
  };

  // One look at a time, and never more than a quarter of the time: a page that takes long is looked at less often.
  const look = async () => {
    if (ended) return;
    if (busy) { again = true; return; }
    busy = true;
    const began = performance.now(), asked = Date.now();
    try {
      const answer = await fetch(location.href, { headers: { "Cliquet-Live": "1" } });
      if (answer.status === 401 || answer.redirected) {
        end();
      } else if (answer.ok) {
        const text = await answer.text();
        [trouble, seen] = ["", asked];
        show(new DOMParser().parseFromString(text, "text/html"));
      } else {
        fail(await answer.json().then((told) => told.error, () => `the server answers ${answer.status}`));
      }
    } catch {
      fail("not connected; trying again");
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
    say();
    if (main.dataset.events) return open();
    close();
  };

  // Whether people open a fold, tick a box, write or ask for the exact time is theirs to say; what they do not see is not.
  const THEIRS = { DETAILS: ["open"], INPUT: ["value", "checked"], TIME: ["data-exact"] };

  const morph = (old, fresh) => {
    const theirs = old.type === "hidden" ? [] : THEIRS[old.nodeName] || [];
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
  // Titles are out of reach of a finger: a time that is touched says exactly when.
  document.addEventListener("click", (event) => {
    event.target.closest("time[title]")?.toggleAttribute("data-exact");
  });
  // What came of the last act is where reading begins.
  document.querySelector("#flash .flash")?.focus();
  window.addEventListener("pagehide", close);
  window.addEventListener("pageshow", open);
  open();
})();
