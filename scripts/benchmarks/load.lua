-- For wrk: POST the JSON documents of a file, one per line, again and again. Print a summary as one
-- line of JSON. Only responses with status 200 count as `ok`.
local bodies, count = {}, 0

function init(args)
  for line in io.lines(args[1]) do
    bodies[#bodies + 1] = line
  end
  math.randomseed(7)
  count = math.random(#bodies)
end

function request()
  count = count % #bodies + 1
  return wrk.format("POST", nil, { ["Content-Type"] = "application/json" }, bodies[count])
end

function done(summary, latency, requests)
  local errors = summary.errors
  local ok = summary.requests - errors.status
  io.write(string.format(
    '{"ok": %d, "refused": %d, "broken": %d, "seconds": %.6f, "p50": %.3f, "p95": %.3f, "p99": %.3f}\n',
    ok, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(95) / 1e3,
    latency:percentile(99) / 1e3))
end
