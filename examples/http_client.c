/* Keep the disks of a backup that `nbdpull expose` serves, each as a raw image that the next backups bring up to date.
 *
 *     cc -o http_client http_client.c -lcurl -ljansson
 *     http_client http://127.0.0.1:8080 TOKEN-FILE vda=vda.raw vdb=vdb.raw
 *
 * The URL may be a Unix socket: unix:PATH. With https:// CURL_CA_BUNDLE names the file with the CA that is trusted, as for
 * the command curl; without it, those of the system are. If it fails, the next backup starts from the same base, and has all that this
 * one had: it makes the images whole again. Until then they are neither of the two. */
#include <curl/curl.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct answer { char *text; size_t length; };
struct place { int file; curl_off_t at, stop; };

static CURL *curl;
static char base[1024];

static void die(const char *what, const char *why) { fprintf(stderr, "http_client: %s: %s\n", what, why); exit(1); }

static size_t keep_text(char *data, size_t one, size_t length, void *to) {
    struct answer *answer = to;
    if (!(answer->text = realloc(answer->text, answer->length + length + 1))) return 0;
    memcpy(answer->text + answer->length, data, length);
    answer->text[answer->length += length] = 0;
    return one * length;
}

static size_t keep_bytes(char *data, size_t one, size_t length, void *to) {
    struct place *place = to;
    for (size_t done = 0; done < length;) {
        ssize_t written = place->at + (curl_off_t)length - (curl_off_t)done > place->stop ? -1
                          : pwrite(place->file, data + done, length - done, place->at);
        if (written <= 0) return 0; /* more than was asked for, or no room */
        done += written, place->at += written;
    }
    return one * length;
}

/* libcurl fails where fewer bytes come than Content-Length says, and with FAILONERROR at any status of 400 and above. */
static void request(const char *path, const char *body, curl_write_callback keep, void *to) {
    char url[4096];
    snprintf(url, sizeof url, "%s%s", base, path);
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, keep);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, to);
    if (body) curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
    CURLcode code = curl_easy_perform(curl);
    if (code) die(url, curl_easy_strerror(code));
}

static json_t *json(const char *path, const char *body) {
    struct answer answer = {0};
    json_error_t error;
    request(path, body, keep_text, &answer);
    json_t *found = json_loads(answer.text ? answer.text : "", 0, &error);
    if (!found) die(path, error.text);
    free(answer.text);
    return found;
}

static void zero(int file, curl_off_t at, curl_off_t stop) {
    static const char zeroes[1 << 16];
    const curl_off_t most = sizeof zeroes;
    for (ssize_t done; at < stop; at += done)
        if ((done = pwrite(file, zeroes, stop - at < most ? stop - at : most, at)) <= 0) die("write", "no room");
}

static void pull(const char *disk, const char *image) {
    char path[2048];
    int file = open(image, O_RDWR | O_CREAT, 0600);
    if (file < 0) die(image, "cannot be opened");
    curl_off_t size = -1, reached = 0;
    for (json_t *next = json_integer(0); json_is_integer(next);) {
        snprintf(path, sizeof path, "/exports/%s/map?offset=%lld", disk, (long long)json_integer_value(next));
        json_t *page = json(path, NULL), *extent;
        const char *type_of_all = json_string_value(json_object_get(page, "backup_type"));
        if (!type_of_all) die(disk, "a map without backup_type");
        int full = !strcmp(type_of_all, "full");
        if (size < 0) {
            size = json_integer_value(json_object_get(page, "size"));
            if ((full && ftruncate(file, 0)) || ftruncate(file, size)) die(image, "cannot have that size");
        }
        size_t index;
        json_array_foreach(json_object_get(page, "extents"), index, extent) {
            curl_off_t at = json_integer_value(json_object_get(extent, "offset"));
            curl_off_t length = json_integer_value(json_object_get(extent, "length"));
            int type = json_integer_value(json_object_get(extent, "type"));
            if (at != reached || length <= 0) die(disk, "a gap in the map");
            reached = at + length;
            if (type == (full ? 0 : 1)) {
                struct place place = {file, at, reached};
                snprintf(path, sizeof path, "/exports/%s/data?offset=%lld&length=%lld", disk, (long long)at, (long long)length);
                request(path, NULL, keep_bytes, &place);
                if (place.at != reached) die(disk, "too few bytes");
            } else if (!full && type == 3) {
                zero(file, at, reached);
            } else if (type != (full ? 2 : 0)) {
                die(disk, "a type of extent that is not known");
            }
        }
        next = json_object_get(page, "next_offset");
    }
    if (reached != size) die(disk, "the map ends before the disk");
    if (fsync(file) || close(file)) die(image, "cannot be written");
}

int main(int count, char **words) {
    char token[512] = "", header[600];
    if (count < 4) die("usage", "http_client URL TOKEN-FILE DISK=IMAGE...");
    FILE *secret = fopen(words[2], "r");
    if (!secret || !fgets(token, sizeof token, secret)) die(words[2], "has no token");
    token[strcspn(token, "\r\n")] = 0;
    snprintf(header, sizeof header, "Authorization: Bearer %s", token);
    curl = curl_easy_init();
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, curl_slist_append(NULL, header));
    curl_easy_setopt(curl, CURLOPT_FAILONERROR, 1L);
    if (getenv("CURL_CA_BUNDLE")) curl_easy_setopt(curl, CURLOPT_CAINFO, getenv("CURL_CA_BUNDLE"));
    int local = !strncmp(words[1], "unix:", 5);
    if (local) curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, words[1] + 5);
    snprintf(base, sizeof base, "%s", local ? "http://localhost" : words[1]);
    for (int word = 3; word < count; word++) {
        char *image = strchr(words[word], '=');
        if (!image) die(words[word], "not DISK=IMAGE");
        *image++ = 0;
        pull(words[word], image);
    }
    json_t *finished = json("/finish", "{\"ok\": true}"); /* all is durable: from now on the base is this backup */
    if (!json_is_true(json_object_get(finished, "committed"))) die("finish", json_dumps(finished, 0));
    puts(json_string_value(json_object_get(finished, "token")));
    return 0;
}
