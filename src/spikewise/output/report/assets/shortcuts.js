// Keyboard shortcuts of the curation page: the name of the pressed shortcut is sent to Python.

function chordOf({ key, altKey, ctrlKey, metaKey, shiftKey }) {
  return [key, ...[altKey, ctrlKey, metaKey, shiftKey].map(Boolean)].join(" ");
}

export function render({ model }) {
  const names = new Map();
  for (const shortcut of model.shortcuts) {
    names.set(chordOf(shortcut), shortcut.name);
    if (shortcut.ctrlKey) names.set(chordOf({ ...shortcut, ctrlKey: false, metaKey: true }), shortcut.name);
  }
  const send = (event) => {
    const name = names.get(chordOf(event));
    const target = event.composedPath()[0];
    const isText = target instanceof HTMLInputElement || target instanceof HTMLTextAreaElement;
    if (name === undefined || (isText && !event.ctrlKey && !event.metaKey)) return;
    event.preventDefault();
    event.stopPropagation();
    model.send_msg(name);
  };
  window.addEventListener("keydown", send);
  model.on("remove", () => window.removeEventListener("keydown", send));
  const empty = document.createElement("span");
  empty.hidden = true;
  return empty;
}
