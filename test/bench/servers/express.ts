/** Express: the response's 'finish'. https://nodejs.org/api/http.html#event-finish_1 */
import express from 'express';
import { address, counts, order, runTasks } from './work.ts';

const app = express();
app.get('/counts', (_req, res) => {
  res.json(counts);
});
app.post('/order', (req, res) => {
  const item = String(req.query.item);
  res.on('finish', () => runTasks(item)).json(order(item));
});
app.listen(address.port, address.host);
