// The viewers of a page that carries everything with it: unpacked when the reader asks.

const NIIVUE = "niivue-script";
let loaded = null;

async function unpacked(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

async function niivue() {
  if (!loaded) {
    const address = URL.createObjectURL(new Blob([await unpacked(NIIVUE)], { type: "text/javascript" }));
    loaded = import(address);
  }
  return (await loaded).Niivue;
}

async function open(root) {
  const { volumes, phantom, hounsfield } = JSON.parse(root.dataset.volumes);
  root.dataset.state = "loading";
  const note = document.createElement("p");
  note.textContent = "Unpacking the viewer and the volumes…";
  root.replaceChildren(note);
  try {
    const found = [];
    for (const { label, id } of volumes) found.push({ label, data: await unpacked(id) });
    await openViewer(root, await niivue(), found, { phantom, hounsfield });
  } catch (error) {
    note.textContent = `The viewer did not open: ${error.message}`;
    root.replaceChildren(note);
    root.dataset.state = "failed";
  }
}

for (const root of document.querySelectorAll("[data-volumes]")) {
  const button = root.querySelector("button");
  if (button) button.addEventListener("click", () => open(root));
  else open(root);
}
