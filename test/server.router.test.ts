/** The router: which route a request finds, and which routes are refused. */
import assert from 'node:assert/strict';
import { describe } from 'node:test';
import {
  backgroundTasks,
  createApp,
  depends,
  get,
  HTTPError,
  path,
  put,
  query,
  type Route,
  route,
} from '../server.ts';
import { rawClient, stderr } from './helpers.ts';
import { ask, Journal, MiB, serve, source, test, without } from './server.helpers.ts';

const named = (...routes: string[]): Route[] =>
  routes.map((text) => {
    const [method = '', pattern = ''] = text.split(' ');
    return route(method, pattern, () => text);
  });

/** `routes` as given and reversed: their order has no effect. */
async function answers(routes: Route[], requests: Record<string, unknown>): Promise<void> {
  for (const order of [routes, routes.toReversed()]) {
    await using server = await serve(order);
    for (const [line, expected] of Object.entries(requests)) {
      const [method = '', target = ''] = line.split(' ');
      const { status, body, headers } = await ask(server.url, { method, path: target });
      if (status === 200) {
        assert.equal(body && JSON.parse(body), expected, line);
      } else {
        assert.deepEqual(
          [status, JSON.parse(body).detail, headers.allow?.split(', ').toSorted()],
          expected,
          line,
        );
      }
    }
  }
}

const notFound = [404, 'Not Found', undefined];

const notAllowed = (...methods: string[]): unknown[] => [405, 'Method Not Allowed', methods];

describe('the router', () => {
  test('a literal segment comes before a parameter, whatever the order, and gives way where it leads nowhere', () =>
    answers(
      named('GET /items/new', 'GET /items/:id', 'GET /:kind/:id/edit', 'GET /items/new/now', 'GET /:a/:b/:c'),
      {
        'GET /items/new': 'GET /items/new',
        'GET /items/1': 'GET /items/:id',
        'GET /items/new/now': 'GET /items/new/now',
        'GET /items/new/edit': 'GET /:kind/:id/edit',
        'GET /items/new/later': 'GET /:a/:b/:c',
        'GET /users/new': notFound,
      },
    ));

  test('a literal segment gives way to a parameter also where it lacks the method', () =>
    answers(named('POST /items/new', 'GET /items/:id', 'PUT /items/:id', 'GET /health'), {
      'POST /items/new': 'POST /items/new',
      'GET /items/new': 'GET /items/:id',
      'PUT /items/new': 'PUT /items/:id',
      'DELETE /items/new': notAllowed('GET', 'HEAD', 'POST', 'PUT'),
      'POST /items/1': notAllowed('GET', 'HEAD', 'PUT'),
    }));

  test('a literal segment may stand twice in a path', () =>
    answers(named('GET /items/:id/items'), { 'GET /items/1/items': 'GET /items/:id/items' }));

  test('a method that the path lacks is 405 with Allow, OPTIONS too', () =>
    answers(named('GET /items', 'POST /items', 'DELETE /items/:id', 'HEAD /head'), {
      'DELETE /items': notAllowed('GET', 'HEAD', 'POST'),
      'OPTIONS /items': notAllowed('GET', 'HEAD', 'POST'),
      'GET /items/1': notAllowed('DELETE'),
      'GET /head': notAllowed('HEAD'),
      'OPTIONS /missing': notFound,
    }));

  test('a route of any method can be declared, OPTIONS and HEAD too', () =>
    answers(named('OPTIONS /items', 'HEAD /items', 'GET /items', 'PATCH /items', 'PROPFIND /items'), {
      'OPTIONS /items': 'OPTIONS /items',
      'HEAD /items': '',
      'PROPFIND /items': 'PROPFIND /items',
      'PATCH /items': 'PATCH /items',
    }));

  test('a slash at the end, or an empty segment, is a path of its own: no redirect, no parameter', () =>
    answers(named('GET /items', 'GET /items/:id', 'GET /users/', 'GET /'), {
      'GET /items/': notFound,
      'GET /items/1/': notFound,
      'GET //items': notFound,
      'GET /items//': notFound,
      'GET //': notFound,
      'GET /users': notFound,
      'GET /users/': 'GET /users/',
      'GET /': 'GET /',
    }));

  test('only `?` ends the path; what stands after it is no part of the route', () =>
    answers(named('GET /items', 'GET /'), {
      'GET /items?': 'GET /items',
      'GET /items?a=/b': 'GET /items',
      'GET /items??': 'GET /items',
      'GET /?x': 'GET /',
      'GET /items;a=1': notFound,
      'GET /items&a=1': notFound,
      'GET /ITEMS': notFound,
    }));

  test('names of Object.prototype are plain segments', () =>
    answers(named('GET /items', 'GET /constructor/:__proto__'), {
      'GET /__proto__': notFound,
      'GET /constructor': notFound,
      'GET /constructor/x': 'GET /constructor/:__proto__',
      'GET /toString': notFound,
    }));

  test('a request target in absolute form is routed by its path; `OPTIONS *` is 404', () =>
    answers(named('GET /items', 'GET /'), {
      'GET http://example.com/items': 'GET /items',
      'GET HTTP://example.com:80/items?a=b://c': 'GET /items',
      'GET http://example.com/': 'GET /',
      'GET http://example.com/items/1': notFound,
      'POST http://example.com/items': notAllowed('GET', 'HEAD'),
      'OPTIONS *': notFound,
    }));

  test('a segment is decoded after the path was split: %2F is data', async () => {
    await using server = await serve([
      get('/files/:name', { name: path('name'), q: query('q', '') }, (values) => values),
      get('/주문/:이름/확인', { name: path('이름') }, ({ name }) => name),
    ]);
    const of = async (target: string): Promise<unknown> =>
      JSON.parse((await ask(server.url, { path: target })).body);
    assert.deepEqual(await of('/files/a%2Fb'), { name: 'a/b', q: '' });
    assert.deepEqual(await of('/files/a%3Fb%23?q=%2F+%3D'), { name: 'a?b#', q: '/ =' });
    assert.deepEqual(await of('/files/a+b%20c'), { name: 'a+b c', q: '' });
    assert.deepEqual(await of('/files/%2525'), { name: '%25', q: '' });
    assert.deepEqual(await of('/files/..'), { name: '..', q: '' });
    assert.deepEqual(await of('/f%69les/:name'), { name: ':name', q: '' });
    assert.deepEqual(await of('http://example.com/files/x?q=1'), { name: 'x', q: '1' });
    assert.deepEqual(await of('/files%2Fa'), { detail: 'Not Found' });
    assert.deepEqual(await of('/files/a/b'), { detail: 'Not Found' });
    assert.equal(await of(encodeURI('/주문/김 철수/확인')), '김 철수');
  });

  test('a route without a parameter is found by its path as it is written, also in percent-encoding', () =>
    answers(named('GET /50%25', 'GET /a%2Fb'), {
      'GET /50%25': 'GET /50%25',
      'GET /a%2Fb': 'GET /a%2Fb',
      'GET /a/b': notFound,
    }));

  test('a path that is not UTF-8 in percent-encoding is 400, and nothing is reported', async (t) => {
    const lines = stderr(t);
    await using server = await serve([
      get('/:name', { name: path('name'), q: query('q', '') }, ({ name, q }) => name + q),
    ]);
    for (const target of ['/%E0%A4', '/%ff', '/%zz', '/a%', '/missing/%C3%28']) {
      const { status, body } = await ask(server.url, { path: target });
      assert.deepEqual(
        [status, body],
        [400, '{"detail":"Expected a path in percent-encoded UTF-8"}'],
        target,
      );
    }
    assert.equal((await ask(server.url, { path: '/a?q=%ff' })).body, '"a\uFFFD"');
    assert.deepEqual(lines, []);
  });

  test('HEAD answers as GET does, with the same headers and no body', async () => {
    await using server = await serve([
      get('/json', () => ({ text: '한글' })),
      get('/response', () => new Response('text', { headers: { 'content-length': '4', 'x-mark': '1' } })),
      get('/empty', () => new Response(null, { status: 404 })),
      get('/thrown', () => {
        throw new HTTPError(410, 'over');
      }),
    ]);
    for (const target of ['/json', '/response', '/empty', '/thrown', '/missing']) {
      const [head, full] = [
        await ask(server.url + target, { method: 'HEAD' }),
        await ask(server.url + target),
      ];
      assert.deepEqual([head.status, without(head.headers)], [full.status, without(full.headers)]);
      assert.equal(head.body, '');
      using client = await rawClient(server.port);
      const line = `HEAD ${target} HTTP/1.1`;
      client.send(line, 'host: a', '', line, 'host: a', 'connection: close', '', '');
      assert.equal(
        (await client.closed).split(/\r\n\r\n(?=HTTP\/1\.1 |$)/).length,
        3,
        'two heads, nothing else',
      );
    }
  });

  test('HEAD of a Response without a content-length is answered, its source is cancelled, its tasks run', async (t) => {
    const lines = stderr(t);
    const log = new Journal();
    await using server = await serve([
      get('/', { tasks: backgroundTasks }, ({ tasks }) => {
        tasks.addTask(log.write, 'task');
        return new Response(
          source(
            () => 'x'.repeat(MiB),
            () => {
              log.write('cancelled');
              throw new Error('ignored');
            },
          ),
          { status: 203, headers: { 'x-mark': '1' } },
        );
      }),
    ]);
    const { status, headers, body } = await ask(server.url, { method: 'HEAD' });
    assert.deepEqual([status, headers['x-mark'], body], [203, '1', '']);
    await log.until('task');
    assert.deepEqual(log.entries, ['cancelled', 'task']);
    assert.deepEqual(lines, []);
  });

  test('two equal routes are refused, whatever their parameters are called', () => {
    assert.throws(() => createApp(named('GET /items/:id', 'GET /items/:name')), {
      name: 'Error',
      message: 'Expected one route for GET /items/:name, got two.',
    });
    assert.throws(() => createApp(named('GET /', 'GET /')), /Expected one route for GET \/, got two\./);
    assert.doesNotThrow(() =>
      createApp(named('GET /items/:id', 'PUT /items/:name', 'GET /items/id', 'GET /items/:id/')),
    );
  });

  test('a path() that its route lacks is refused by createApp, also in a dependency of a dependency', () => {
    const id = path('id');
    const outer = depends({ inner: depends({ id }, ({ id }) => id) }, ({ inner }) => inner);
    const refused = {
      name: 'Error',
      message: 'Expected GET /items/:name to have a segment :id, as path() needs it.',
    };
    assert.throws(() => createApp([get('/items/:name', { id }, () => {})]), refused);
    assert.throws(() => createApp([get('/items/:name', { outer }, () => {})]), refused);
    assert.doesNotThrow(() => createApp([get('/items/:id', { outer, id }, () => {})]));
  });

  test('a pattern without a slash, with a name twice, or with no name is refused by route()', () => {
    for (const pattern of ['', 'items', ':id', '/:id/x/:id', '/:', '/items/:/x']) {
      assert.throws(() => get(pattern, () => {}), {
        name: 'TypeError',
        message: `Expected a path such as '/items/:id', each name once, got '${pattern}'.`,
      });
    }
  });

  test('a handler that is no function, or a dependency that is none, is refused by route()', () => {
    for (const handler of [undefined, null, {}, 'text', Promise.resolve()]) {
      const refused = { name: 'TypeError', message: 'Expected PUT /items to have a handler function.' };
      assert.throws(() => put('/items', handler as never), refused);
      assert.throws(() => put('/items', {}, handler as never), refused);
    }
    assert.throws(() => put('/items', { id: 'id' as never }, () => {}), {
      name: 'TypeError',
      message: /`id`/,
    });
  });
});
