-- What wrk asks, and its result as one line of JSON. Its arguments, after "--":
--   read FILE     GET the paths in a file (one to a line), in turn, again and again
--   create TAG    POST users whose addresses begin with a tag and a number, so that none comes twice

local asked, number = {}, 0
local tag

function init(args)
  if args[1] == "create" then
    tag = args[2]
    wrk.headers["Content-Type"] = "application/json"
  else
    for path in io.lines(args[2]) do
      asked[#asked + 1] = wrk.format("GET", path)
    end
  end
end

function request()
  number = number + 1
  if tag then
    local name = tag .. "-" .. number
    local user = '{"name": "User ' .. name .. '", "email": "' .. name .. '@example.com"}'
    return wrk.format("POST", "/users/", nil, user)
  end
  return asked[(number - 1) % #asked + 1]
end

function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format(
    '\n{"rps": %.1f, "p50": %.3f, "p99": %.3f, "failed": %d}\n',
    summary.requests / (summary.duration / 1e6),
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, failed
  ))
end
