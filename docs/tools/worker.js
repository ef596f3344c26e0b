// Lets the search work from a folder too: pages opened as files may not start a worker, so that its
// script runs in a hidden frame instead, with the same messages.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.appendChild(this.frame)
      this.ready = new Promise((resolve) => {
        const inside = this.frame.contentWindow
        inside.receive = (data) => this.deliver(this, data)
        inside.started = resolve
        const page = this.frame.contentDocument
        page.open()
        page.write(
          "<!doctype html><script>" +
            "var postMessage = (data) => receive(data);" +
            `<\/script><body><script src="${url}" onload="started()"><\/script>`,
        )
        page.close()
      })
    }

    postMessage(data) {
      this.ready.then(() => this.deliver(this.frame.contentWindow, data))
    }

    // As between a page and a worker: a copy of the data, later.
    deliver(target, data) {
      const copy = structuredClone(data)
      setTimeout(() => {
        const event = new MessageEvent("message", { data: copy })
        target.dispatchEvent(event)
        if (target === this && this.onmessage) this.onmessage(event)
      })
    }

    terminate() {
      this.frame.remove()
    }
  }
}
