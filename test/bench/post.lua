-- What wrk sends, and what it prints of it: one line of JSON.
wrk.method = 'POST'

done = function(summary, latency)
  local errors = summary.errors
  io.write(('\n{"requests":%d,"seconds":%.6f,"p50":%.3f,"p99":%.3f,"errors":%d}\n'):format(
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
