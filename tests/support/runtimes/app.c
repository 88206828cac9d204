/* The application of app.py on libfcgi: eight threads that accept from one listener. */
#include <fcgiapp.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { THREADS = 8, BIG = 300000, HALF = 1000000 };

static int listener;

static void send_xs(FCGX_Stream *out, int count)
{
    char part[10000];
    memset(part, 'x', sizeof part);
    for (; count > 0; count -= sizeof part)
        FCGX_PutStr(part, count < (int)sizeof part ? count : (int)sizeof part, out);
}

static void wait_for(const char *file)
{
    while (access(file, F_OK) != 0)
        usleep(5000);
}

static void echo(FCGX_Request *request)
{
    char part[65536];
    int got;
    while ((got = FCGX_GetStr(part, sizeof part, request->in)) > 0)
        FCGX_PutStr(part, got, request->out);
}

static void answer(FCGX_Request *request)
{
    const char *uri = FCGX_GetParam("REQUEST_URI", request->envp);
    const char *query = strchr(uri, '?');
    size_t length = query ? (size_t)(query - uri) : strlen(uri);
    query = query ? query + 1 : "";
#define IS(path) (strlen(path) == length && strncmp(uri, path, length) == 0)

    if (IS("/crash"))
        kill(0, SIGKILL);
    FCGX_FPrintF(request->out,
                 "Content-Type: application/octet-stream\r\nX-Generation: %s\r\nX-Release: %s\r\n\r\n",
                 getenv("DEPLOYTOOLS_GENERATION"), getenv("DEPLOYTOOLS_RELEASE"));
    if (IS("/big")) {
        send_xs(request->out, BIG);
    } else if (IS("/echo")) {
        echo(request);
    } else if (IS("/stream")) {
        send_xs(request->out, HALF);
        FCGX_FFlush(request->out);
        wait_for(query);
        send_xs(request->out, HALF);
    } else {
        if (IS("/slow"))
            usleep((useconds_t)(1e6 * atof(query)));
        if (IS("/until"))
            wait_for(query);
        FCGX_FPrintF(request->out, "hello from %s", getenv("DEPLOYTOOLS_RELEASE"));
    }
}

static void *serve(void *unused)
{
    FCGX_Request request;
    FCGX_InitRequest(&request, listener, 0);
    while (FCGX_Accept_r(&request) == 0) {
        answer(&request);
        FCGX_Finish_r(&request);
    }
    return unused;
}

int main(void)
{
    const char *path = getenv("APP_SOCKET");
    pthread_t thread;

    FCGX_Init();
    listener = path ? FCGX_OpenSocket(path, 1024) : 0;
    for (int number = 1; number < THREADS; number++)
        pthread_create(&thread, NULL, serve, NULL);
    serve(NULL);
    return 0;
}
