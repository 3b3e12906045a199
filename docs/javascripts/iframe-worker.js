/* Browsers start no worker from file:, so the search of the site runs in a hidden frame there. */
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.width = frame.height = "0";
      document.body.appendChild(frame);
      this.frame = frame;
      const inner = frame.contentWindow;
      this.started = new Promise((resolve) => {
        inner.document.open();
        inner.document.write("<!doctype html><meta charset=utf-8>");
        inner.document.close();
        inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
        const script = inner.document.createElement("script");
        script.src = new URL(url, location.href).href;
        script.onload = () => resolve(inner);
        inner.document.head.appendChild(script);
      });
    }
    postMessage(data) {
      this.started.then((inner) => inner.dispatchEvent(new inner.MessageEvent("message", { data })));
    }
    terminate() {
      this.frame.remove();
    }
  };
  window.Worker = window.IFrameWorker;
}
