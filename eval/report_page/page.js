for (const set of document.querySelectorAll(".set")) {
  const form = set.querySelector(".filters");
  const value = (name) => form.elements[name]?.value ?? "";
  const filter = () => {
    const words = value("words").trim().toLowerCase();
    let shown = 0, found = 0;
    for (const dialogue of set.querySelectorAll(".dialogue")) {
      const wanted = !value("images") || dialogue.dataset.images === value("images");
      const narrow = value("kind") || value("tag") || words;
      let hits = 0;
      for (const turn of dialogue.querySelectorAll(".turn")) {
        const hit = wanted
          && (!value("kind") || turn.dataset.kind === value("kind"))
          && (!value("tag") || turn.dataset.tags.split(" ").includes(value("tag")))
          && (!words || turn.textContent.toLowerCase().includes(words));
        turn.classList.toggle("faint", Boolean(narrow) && !hit);
        hits += hit;
      }
      dialogue.hidden = hits === 0;
      shown += hits > 0;
      found += hits;
    }
    const counted = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
    form.querySelector("output").textContent = `${counted(found, "question")} in ${counted(shown, "dialogue")}`;
  };
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();
}
