-- wrk: one POST after another, bodies from a file with one JSON document a line; a line of JSON at
-- the end. `predictions/s` counts answers 200 only.
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
  local good = summary.requests - errors.status
  io.write(string.format(
    '{"good": %d, "refused": %d, "broken": %d, "seconds": %.6f, "p50": %.3f, "p95": %.3f, "p99": %.3f}\n',
    good, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(95) / 1e3,
    latency:percentile(99) / 1e3))
end
