// Pages opened as files may not start workers, which the search needs: a hidden frame stands in for one.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inside = this.frame.contentWindow;
      inside.postMessage = (data) => this.deliver(this, data);
      inside.importScripts = (...urls) => Promise.all(urls.map((each) => this.load(each)));
      this.ready = this.load(url);
    }
    load(url) {
      return new Promise((resolve, reject) => {
        const script = this.frame.contentDocument.createElement("script");
        Object.assign(script, { src: new URL(url, document.baseURI).href, onload: resolve, onerror: reject });
        this.frame.contentDocument.body.append(script);
      });
    }
    deliver(to, data) {
      const event = new MessageEvent("message", { data });
      to.onmessage?.(event);
      to.dispatchEvent(event);
    }
    postMessage(data) {
      this.ready.then(() => setTimeout(() => this.deliver(this.frame.contentWindow, data)));
    }
    terminate() {
      this.frame.remove();
    }
  };
}
