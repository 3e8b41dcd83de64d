// The viewer of `lift view`: fetches its volumes from the server that gave this page.

import { openViewer } from "./viewer.js";
import { Niivue } from "./niivue.js";

const root = document.getElementById("viewer");
const note = root.querySelector("p");
try {
  const list = await (await fetch("volumes.json")).json();
  const volumes = [];
  for (const [index, label] of list.labels.entries()) {
    note.textContent = `Loading ${label}…`;
    const answer = await fetch(`volume/${index}`);
    if (!answer.ok) throw new Error(`volume ${index + 1}: status ${answer.status}`);
    volumes.push({ label, data: await answer.arrayBuffer() });
  }
  await openViewer(root, Niivue, volumes, { hounsfield: list.hounsfield });
} catch (error) {
  note.textContent = `The volumes cannot be shown: ${error.message}`;
  root.replaceChildren(note);
  root.dataset.state = "failed";
}
