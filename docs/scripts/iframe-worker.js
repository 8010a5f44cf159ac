/* Search in a site opened from disk: browsers give such pages no workers, so the search's worker runs in a hidden frame. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.early = []; // what is sent before the script is there
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.onload = () => this.start(frame.contentWindow, url);
      document.body.append(frame);
    }

    start(inside, url) {
      if (this.inside) return;
      this.inside = inside;
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const script = inside.document.createElement("script");
      script.src = url;
      script.onload = () => {
        const early = this.early;
        this.early = null;
        early.forEach((data) => this.postMessage(data));
      };
      inside.document.head.append(script);
    }

    postMessage(data) {
      if (this.early) this.early.push(data);
      else this.inside.dispatchEvent(new MessageEvent("message", { data }));
    }
  };
}
