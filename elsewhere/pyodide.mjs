// What the library says where there are no connections: Python on WebAssembly (Emscripten).
//     node pyodide.mjs FOLDER SOURCES TYPING_EXTENSIONS      (after npm install --prefix FOLDER pyodide)
import fs from "node:fs";

const [folder, sources, typingExtensions] = process.argv.slice(2);
const { loadPyodide } = await import(`${folder}/node_modules/pyodide/pyodide.mjs`);
const python = await loadPyodide();

function copy(from, to) {
  python.FS.mkdirTree(to);
  for (const entry of fs.readdirSync(from, { withFileTypes: true })) {
    const [here, there] = [`${from}/${entry.name}`, `${to}/${entry.name}`];
    if (entry.isDirectory()) copy(here, there);
    else if (entry.name.endsWith(".py")) python.FS.writeFile(there, fs.readFileSync(here));
  }
}

copy(sources, "/sources");
python.FS.writeFile("/sources/typing_extensions.py", fs.readFileSync(typingExtensions));
process.exitCode = python.runPython(`
import errno, socket, sys
sys.path.insert(0, "/sources")
from graceful_close import *
from graceful_close_lab.command import main

closes = {
    "graceful_close": lambda sock: graceful_close(sock, timeout=0.1),
    "timed_linger_close": lambda sock: timed_linger_close(sock, 0.1),
    "close_all": lambda sock: close_all([sock], timeout=0.1)[0],
    "abortive_close": abortive_close,
    "Reaper": lambda sock: Reaper(timeout=0.1).submit(sock).result(1),
}
for name, close in closes.items():
    outcome = close(socket.socket()).outcome
    print(f"{name}: {outcome.name}")
    assert outcome is CloseOutcome.NOT_CONNECTED
try:
    get_linger(socket.socket())
except OSError as error:
    assert error.errno == errno.ENOPROTOOPT
    print(f"get_linger: {error}")
main(["--promises"])
`);
