// The prompt box: words the model knows, and changing one thing of a sentence.

const wordAt = (text, place) => {
  const start = text.slice(0, place).search(/[\p{L}\p{N}'-]+$/u);
  return start < 0 ? null : { start, end: place, word: text.slice(start, place).toLowerCase() };
};

const escape = (phrase) => phrase.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

export class Words {
  constructor({ vocabulary, read_as: readAs = {}, groups, examples, keys }) {
    Object.assign(this, { vocabulary, readAs, groups, examples, keys });
    this.known = new Set(vocabulary.map((word) => word.toLowerCase()));
    this.phrases = Object.values(groups).flatMap((values) => Object.values(values).flat());
  }

  // Longest first, so that "late at night" is found before "at night".
  find(prompt, group) {
    const all = Object.entries(this.groups[group] ?? {}).flatMap(([value, list]) => list.map((phrase) => ({ value, phrase })));
    all.sort((a, b) => b.phrase.length - a.phrase.length);
    return all.find(({ phrase }) => new RegExp(`(^|[^\\p{L}])${escape(phrase)}($|[^\\p{L}])`, "iu").test(prompt)) ?? null;
  }

  // The prompt with one thing changed: the phrase of that group replaced, or a new one added.
  change(prompt, group, value) {
    const phrase = this.groups[group][value][0];
    const found = this.find(prompt, group);
    if (found) return prompt.replace(new RegExp(escape(found.phrase), "i"), phrase);
    const [head, ...rest] = prompt.split(",");
    return [`${head.trimEnd()} ${phrase}`, ...rest].join(",").trim();
  }

  split(prompt) {
    return [...new Set(prompt.toLowerCase().match(/[\p{L}\p{N}]+(?:['-][\p{L}\p{N}]+)*/gu) ?? [])];
  }

  unknown(prompt) {
    return this.known.size ? this.split(prompt).filter((word) => !this.known.has(word) && !Object.hasOwn(this.readAs, word)) : [];
  }

  // Words of a prompt that were not taught, and what the server takes for them.
  replaced(prompt) {
    return this.split(prompt).filter((word) => Object.hasOwn(this.readAs, word) && this.readAs[word]).map((word) => `${word} is read as ${this.readAs[word]}`);
  }

  // What could follow: phrases that begin with the last words, then single words.
  complete(text, place) {
    const here = wordAt(text, place);
    if (!here || here.word.length < 2) return [];
    const begins = (candidate) => candidate.toLowerCase().startsWith(here.word) && candidate.toLowerCase() !== here.word;
    const found = [...this.phrases.filter(begins), ...this.vocabulary.filter(begins)];
    return [...new Set(found)].slice(0, 7).map((word) => ({ ...here, text: word }));
  }

  surprise(before) {
    const others = this.examples.filter((example) => example !== before);
    return others[Math.floor(Math.random() * others.length)] ?? before;
  }
}

export class PromptBox {
  constructor(form, words) {
    this.words = words;
    this.form = form;
    this.input = form.querySelector("input");
    this.list = form.querySelector("[role=listbox]");
    this.note = form.querySelector("#prompt-note");
    this.chosen = -1;
    this.offers = [];
    this.input.addEventListener("input", () => this.offer());
    this.input.addEventListener("blur", () => setTimeout(() => this.hide(), 120));
    this.input.addEventListener("keydown", (event) => this.key(event));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.hide();
      this.check();
      if (this.value) this.onsend?.(this.value);
    });
  }

  get value() {
    return this.input.value.trim();
  }

  set value(text) {
    this.input.value = text;
    this.check();
  }

  check() {
    const unknown = this.words.unknown(this.value);
    const notes = this.words.replaced(this.value);
    if (unknown.length) notes.push(`not in this model's vocabulary: ${unknown.join(", ")}`);
    const text = notes.join("; ");
    this.note.textContent = text.slice(0, 1).toUpperCase() + text.slice(1);
  }

  offer() {
    this.check();
    this.offers = this.words.complete(this.input.value, this.input.selectionStart);
    this.chosen = -1;
    this.list.replaceChildren(
      ...this.offers.map((offer, index) => {
        const item = document.createElement("li");
        item.role = "option";
        item.id = `suggestion-${index}`;
        const typed = document.createElement("b");
        typed.textContent = offer.text.slice(0, offer.word.length);
        item.append(typed, offer.text.slice(offer.word.length));
        item.addEventListener("mousedown", (event) => {
          event.preventDefault();
          this.take(index);
        });
        return item;
      }),
    );
    this.list.hidden = !this.offers.length;
    this.input.setAttribute("aria-expanded", String(!this.list.hidden));
  }

  hide() {
    this.list.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
  }

  choose(index) {
    this.chosen = (index + this.offers.length) % this.offers.length;
    [...this.list.children].forEach((item, at) => item.setAttribute("aria-selected", String(at === this.chosen)));
    this.input.setAttribute("aria-activedescendant", `suggestion-${this.chosen}`);
    this.list.children[this.chosen].scrollIntoView({ block: "nearest" });
  }

  take(index) {
    const { start, end, text } = this.offers[index];
    const before = this.input.value;
    this.input.value = before.slice(0, start) + text + before.slice(end);
    this.input.setSelectionRange(start + text.length, start + text.length);
    this.hide();
    this.check();
  }

  key(event) {
    if (this.list.hidden) {
      if (event.key === "Escape") this.input.blur();
      return;
    }
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      this.choose(this.chosen + (event.key === "ArrowDown" ? 1 : this.chosen < 0 ? 0 : -1));
    } else if (event.key === "Tab" || (event.key === "Enter" && this.chosen >= 0)) {
      event.preventDefault();
      this.take(Math.max(0, this.chosen));
    } else if (event.key === "Escape") {
      this.hide();
    }
  }
}
