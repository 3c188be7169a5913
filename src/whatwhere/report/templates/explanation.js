"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const element = (id) => document.getElementById(id);
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const colours = data.colours.map(bytes);
  const [LIVELY, GREY] = colours;
  const SIDE = 448;
  const WORDS = [["top left", "top middle", "top right"], ["middle left", "middle", "middle right"], ["bottom left", "bottom middle", "bottom right"]];
  const mapsOf = (network) => [network.cam, ...network.layers.flatMap((layer) => [...layer.planes, ...layer.channels])];
  for (const map of data.networks.flatMap(mapsOf)) if (map) map.values = bytes(map.bytes);

  const short = (value) => (Math.abs(value) >= 0.01 || value === 0 ? value.toFixed(2) : value.toExponential(1));
  // The places of a map, and as how many it is drawn where these are fewer.
  const sized = ({ size, height, width }) => `${size[0]} x ${size[1]} places${size[0] === height && size[1] === width ? "" : `, drawn as ${height} x ${width}`}`;
  const make = (name, parent, text = "", kind = "") => {
    const made = parent.appendChild(document.createElement(name));
    made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  const drawing = (name, parent, attributes) => {
    const made = parent.appendChild(document.createElementNS("http://www.w3.org/2000/svg", name));
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };

  // One map of one image: its values from 0 to 255 on its scale, and the ends of the scale.
  function cut(map, number, ownRange) {
    const size = map.height * map.width;
    let values = map.values.subarray(number * size, (number + 1) * size);
    const own = map.low.length > 1;
    let [low, high] = [map.low[own ? number : 0], map.high[own ? number : 0]];
    if (ownRange && !own) {
      const [least, most] = [Math.min(...values), Math.max(...values)];
      const step = (high - low) / 255;
      values = values.map((value) => Math.round((255 * (value - least)) / Math.max(1, most - least)));
      [low, high] = [low + least * step, low + most * step];
    }
    let flat = "";
    if (own && high === 0) flat = "nothing speaks for the class";
    else if (own && low === high) flat = `${short(high)} everywhere: no place stands out`;
    if (!own && map.high[0] - map.low[0] < map.least) flat = `${short(map.low[0])} everywhere, in all images: there is nothing to show`;
    return { values, low, high, flat, height: map.height, width: map.width };
  }

  function coloured(map, scale) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [map.width, map.height];
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(map.width, map.height);
    map.values.forEach((value, place) => {
      pixels.data.set(scale.subarray(3 * value, 3 * value + 3), 4 * place);
      pixels.data[4 * place + 3] = 255;
    });
    context.putImageData(pixels, 0, 0);
    return canvas;
  }

  function highest(map) {
    const most = Math.max(...map.values);
    if (most === Math.min(...map.values)) return "the same everywhere in this image";
    const third = (at, size) => Math.min(2, Math.floor((3 * (at + 0.5)) / size));
    const places = new Set();
    map.values.forEach((value, place) => {
      if (value !== most) return;
      const [row, column] = [third(Math.floor(place / map.width), map.height), third(place % map.width, map.width)];
      if (map.width === 1) places.add(["at the top", "in the middle", "at the bottom"][row]);
      else if (map.height === 1) places.add(["at the left", "in the middle", "at the right"][column]);
      else places.add(WORDS[row][column]);
    });
    return `highest ${places.size === 1 ? [...places][0] : "in several places"}`;
  }

  function panel(row, image, title, subtitle, map, doubt = "", remark = "") {
    const figure = make("figure", row);
    const caption = make("figcaption", figure);
    make("bdi", caption, title);
    make("span", caption, subtitle);
    const canvas = make("canvas", figure);
    [canvas.width, canvas.height] = [SIDE, Math.round((SIDE * image.naturalHeight) / image.naturalWidth) || SIDE];
    canvas.setAttribute("role", "img");
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    if (!map || map.flat) {
      const said = map ? `${title}, ${subtitle}: ${map.flat}` : `${title}: ${subtitle}`;
      if (map) make("p", figure, `${map.flat}.`, "note");
      canvas.setAttribute("aria-label", said);
      return said;
    }
    const scale = doubt ? GREY : LIVELY;
    context.globalAlpha = element("opacity").value / 100;
    context.drawImage(coloured(map, scale), 0, 0, canvas.width, canvas.height);
    const range = make("div", figure, "", "scale");
    make("span", range, short(map.low));
    const legend = make("canvas", range);
    [legend.width, legend.height] = [256, 1];
    legend.getContext("2d").drawImage(coloured({ values: Uint8Array.from({ length: 256 }, (_, n) => n), width: 256, height: 1 }, scale), 0, 0);
    legend.setAttribute("aria-hidden", "true");
    make("span", range, short(map.high));
    if (doubt) make("p", figure, `Says little: the gate is ${doubt}.`, "note doubt");
    if (remark) make("p", figure, `Keep in mind: ${remark}.`, "note");
    const said = `${title}, ${subtitle}: ${highest(map)}, on a scale from ${short(map.low)} to ${short(map.high)}${doubt ? `. Says little: the gate is ${doubt}` : ""}${remark ? `. Keep in mind: ${remark}` : ""}`;
    canvas.setAttribute("aria-label", said);
    return said;
  }

  function bars(network, layer, gate, number) {
    const { numbers, mean, low, high, middle, total, name } = gate;
    const values = Array.from(gate.values.subarray(number * numbers.length, (number + 1) * numbers.length), (value) => low + (value / 255) * (high - low));
    const figure = make("figure", element("bars"), "", "bars");
    const caption = make("figcaption", figure);
    make("bdi", caption, `${network.name}, ${layer.name}: ${name} gate`);
    make("span", caption, ` of ${numbers.length < total ? `the ${numbers.length} channels of ${total} that differ most between the images` : `all ${total} channels`}; the line in each bar is its mean over the images, the dashed line is ${middle}, the middle of what the gate can be`);
    const ranked = numbers.map((_, n) => n).sort((a, b) => values[b] - values[a]);
    const told = (n) => `channel ${numbers[n]} with ${values[n].toFixed(2)}`;
    const chart = drawing("svg", figure, { viewBox: `0 0 ${numbers.length} 1`, preserveAspectRatio: "none", role: "img", "aria-label": `${gate.open[number]} of these ${numbers.length} channels are open, above ${middle}; most open ${told(ranked[0])}, least ${told(ranked[ranked.length - 1])}` });
    const at = (value) => 1 - (value - low) / (high - low);
    values.forEach((value, n) => {
      const bar = drawing("rect", chart, { x: n + 0.1, y: at(value), width: 0.8, height: 1 - at(value) });
      drawing("title", bar, {}).textContent = `channel ${numbers[n]}: ${value.toFixed(2)}, mean ${mean[n].toFixed(2)}`;
      drawing("line", chart, { x1: n + 0.1, x2: n + 0.9, y1: at(mean[n]), y2: at(mean[n]) });
    });
    drawing("line", chart, { class: "half", x1: 0, x2: numbers.length, y1: at(middle), y2: at(middle) });
  }

  const radios = [...document.querySelectorAll('input[name="picture"]')];
  const slider = element("layer");
  const most = Math.max(...data.networks.map((network) => network.layers.length));
  slider.max = Math.max(0, most - 1);
  slider.value = slider.max;
  element("layer-control").hidden = most === 0;

  // The layer of a network at the slider's place; networks may have different numbers of layers.
  const layerAt = (network) => network.layers[most < 2 ? 0 : Math.round((slider.value / (most - 1)) * (network.layers.length - 1))];

  async function show() {
    const number = radios.findIndex((radio) => radio.checked);
    const label = radios[number].closest("label");
    const first = label.querySelector("img");
    const longest = data.networks.find((network) => network.layers.length === most);
    const layerName = most ? layerAt(longest).name : "";
    element("layer-name").textContent = `${layerName} (${Number(slider.value) + 1} of ${most})`;
    slider.setAttribute("aria-valuetext", layerName);
    element("opacity-value").textContent = `${element("opacity").value} %`;
    element("opacity").setAttribute("aria-valuetext", `${element("opacity").value} per cent`);
    const images = await Promise.all(data.networks.map(async (network) => {
      const image = new Image();
      image.src = network.pictures ? network.pictures[number] : first.src;
      await image.decode();
      return image;
    }));
    if (!radios[number].checked) return; // another image was chosen meanwhile
    element("named").textContent = label.title + (label.dataset.label ? `, of the class ${label.dataset.label}` : "");
    element("panels").replaceChildren();
    element("bars").replaceChildren();
    const said = [];
    const targets = new Set(data.networks.flatMap((network) => (network.cam ? [network.camClasses[number]] : [])));
    element("apart").hidden = targets.size < 2;
    data.networks.forEach((network, n) => {
      const predicted = (network.predictions[number] || []).map(([name, share]) => `${name} ${share === null ? "not finite" : `${(100 * share).toFixed(1)} %`}`).join(", ");
      const row = make("div", element("panels"), "", "maps");
      panel(row, images[n], network.name, predicted || "the image");
      said.push(`${network.name}${predicted && ` predicts ${predicted}`}`);
      const layer = layerAt(network);
      for (const plane of layer ? layer.planes : []) {
        const map = cut(plane, number, element("own-range").checked);
        const mix = layer.mix === null ? "" : `, a = ${layer.mix.toFixed(2)}${layer.mix < 0 ? ": turned round" : ""}`;
        said.push(panel(row, images[n], `${plane.name} gate`, `${layer.name}, ${sized(plane)}${mix}`, map, plane.doubt, plane.remark));
      }
      if (network.cam) {
        said.push(panel(row, images[n], `Grad-CAM for ${network.camClasses[number]}`, `${network.camLayer}, ${sized(network.cam)}`, cut(network.cam, number, false)));
      }
      for (const gate of layer ? layer.channels : []) bars(network, layer, gate, number);
    });
    const spoken = said.join(". ");
    if (element("spoken").textContent !== spoken) element("spoken").textContent = spoken;
  }

  for (const control of [...radios, slider, element("opacity"), element("own-range")]) control.addEventListener("input", show);
  element("viewer").hidden = false;
  show();
})();
