// The same as real_asgi for Node: `node real_node.js FD`, without WebSocket and lifespan.
"use strict";
const fs = require("fs");
const http = require("http");

const server = http.createServer((request, response) => {
  if (request.url === "/events") {
    response.writeHead(200, { "Content-Type": "text/event-stream" });
    let number = 0;
    const timer = setInterval(() => {
      if (fs.existsSync(process.env.GO)) {
        clearInterval(timer);
        response.end("data: the end\n\n");
      } else {
        response.write(`data: ${++number} of ${process.pid}\n\n`);
      }
    }, 20);
    return;
  }
  let bytes = 0;
  request.on("data", (data) => { bytes += data.length; });
  request.on("end", () => {
    const client = request.headers["x-forwarded-for"];
    const body = JSON.stringify({ pid: process.pid, client, scheme: request.headers["x-forwarded-proto"], bytes });
    response.writeHead(200, { "Content-Length": Buffer.byteLength(body) });
    response.end(body);
  });
});
server.keepAliveTimeout = 0; // frontd closes connections that are idle
process.on("SIGTERM", () => server.close(() => process.exit(0)));
server.listen({ fd: Number(process.argv[2]) });
