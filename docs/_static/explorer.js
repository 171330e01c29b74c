// Frames of the explorer say how high they are, which depends on their width.
window.addEventListener("message", ({ data, source }) => {
  const frames = [...document.querySelectorAll("iframe.explorer")];
  const frame = frames.find(({ contentWindow }) => contentWindow === source);
  if (frame && data?.explorerHeight > 0) frame.style.height = `${Math.ceil(data.explorerHeight)}px`;
});
