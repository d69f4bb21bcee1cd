/*
 * Reads the same objects of many devices with net-snmp's library and says what it cost, as one JSON object:
 *   netsnmp sync|async FIRST_ADDRESS DEVICES PORT ROUNDS OBJECTS NON_REPEATERS MAX_REPETITIONS OID...
 * OBJECTS: how many an answer must bring. MAX_REPETITIONS 0: by GET; else by GETBULK.
 * One session a device, opened before the clock starts. sync: one question after another, the library's own
 * snmp_sess_synch_response. async: all devices at once, waited for by epoll (its own select does not go beyond a
 * few thousand sessions).
 */
#include <net-snmp/net-snmp-config.h>
#include <net-snmp/net-snmp-includes.h>
#include <net-snmp/library/large_fd_set.h>
#include <net-snmp/library/snmp_transport.h>
#include <arpa/inet.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/time.h>

#define OBJECTS_MAX 128

static oid names[OBJECTS_MAX][MAX_OID_LEN];
static size_t lengths[OBJECTS_MAX];
static int objects, wanted_objects, non_repeaters, max_repetitions;
static long answered, failed, outstanding;
/* What is read is used, so that nothing can be left out. */
static unsigned long sum;

static double cpu(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec
        + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static double now(void)
{
    struct timeval time;
    gettimeofday(&time, NULL);
    return time.tv_sec + time.tv_usec / 1e6;
}

static netsnmp_pdu *question(void)
{
    netsnmp_pdu *pdu = snmp_pdu_create(max_repetitions ? SNMP_MSG_GETBULK : SNMP_MSG_GET);
    if (max_repetitions) {
        pdu->non_repeaters = non_repeaters;
        pdu->max_repetitions = max_repetitions;
    }
    for (int n = 0; n < objects; n++)
        snmp_add_null_var(pdu, names[n], lengths[n]);
    return pdu;
}

static void take(const netsnmp_pdu *pdu)
{
    int got = 0;
    for (const netsnmp_variable_list *at = pdu->variables; at; at = at->next_variable) {
        if (at->type == ASN_OCTET_STR)
            sum += at->val_len ? at->val.string[0] : 0;
        else if (at->type != ASN_OBJECT_ID && at->val.integer)
            sum += *at->val.integer;
        got++;
    }
    if (pdu->errstat == SNMP_ERR_NOERROR && got == wanted_objects)
        answered++;
    else
        failed++;
}

static int done(int operation, netsnmp_session *session, int id, netsnmp_pdu *pdu, void *magic)
{
    (void) session, (void) id, (void) magic;
    outstanding--;
    if (operation == NETSNMP_CALLBACK_OP_RECEIVED_MESSAGE)
        take(pdu);
    else
        failed++;
    return 1;
}

static void read_sync(void **sessions, int devices)
{
    for (int n = 0; n < devices; n++) {
        netsnmp_pdu *answer = NULL;
        if (snmp_sess_synch_response(sessions[n], question(), &answer) == STAT_SUCCESS && answer)
            take(answer);
        else
            failed++;
        if (answer)
            snmp_free_pdu(answer);
    }
}

static void read_async(void **sessions, int devices, int epoll, netsnmp_large_fd_set *set)
{
    struct epoll_event events[256];
    for (int n = 0; n < devices; n++) {
        if (snmp_sess_async_send(sessions[n], question(), done, NULL))
            outstanding++;
        else
            failed++;
    }
    while (outstanding > 0) {
        int ready = epoll_wait(epoll, events, 256, 1000);
        for (int n = 0; n < ready; n++) {
            void *session = sessions[events[n].data.u32];
            int fd = snmp_sess_transport(session)->sock;
            netsnmp_large_fd_setfd(fd, set);
            snmp_sess_read2(session, set);
            netsnmp_large_fd_clr(fd, set);
        }
        if (ready == 0)
            for (int n = 0; n < devices; n++)
                snmp_sess_timeout(sessions[n]);
    }
}

int main(int argc, char **argv)
{
    if (argc < 10)
        return 2;
    int async = strcmp(argv[1], "async") == 0, devices = atoi(argv[3]), rounds = atoi(argv[5]);
    wanted_objects = atoi(argv[6]);
    non_repeaters = atoi(argv[7]);
    max_repetitions = atoi(argv[8]);
    unsigned int first = ntohl(inet_addr(argv[2]));
    struct rlimit files = { .rlim_cur = devices + 64, .rlim_max = devices + 64 };
    struct rlimit had;
    getrlimit(RLIMIT_NOFILE, &had);
    if (had.rlim_cur < files.rlim_cur && setrlimit(RLIMIT_NOFILE, &files) != 0) {
        perror("raise the limit of files");
        return 1;
    }
    netsnmp_ds_set_boolean(NETSNMP_DS_LIBRARY_ID, NETSNMP_DS_LIB_DONT_READ_CONFIGS, 1);
    netsnmp_ds_set_boolean(NETSNMP_DS_LIBRARY_ID, NETSNMP_DS_LIB_DONT_PERSIST_STATE, 1);
    setenv("MIBS", "", 1);
    init_snmp("bench");
    for (int n = 9; n < argc && objects < OBJECTS_MAX; n++, objects++) {
        lengths[objects] = MAX_OID_LEN;
        if (!read_objid(argv[n], names[objects], &lengths[objects])) {
            fprintf(stderr, "no object: %s\n", argv[n]);
            return 2;
        }
    }
    int epoll = epoll_create1(0);
    void **sessions = calloc(devices, sizeof *sessions);
    netsnmp_large_fd_set set;
    netsnmp_large_fd_set_init(&set, devices + 64);
    for (int n = 0; n < devices; n++) {
        netsnmp_session wanted;
        char peer[64];
        struct in_addr address = { .s_addr = htonl(first + n) };
        snprintf(peer, sizeof peer, "udp:%s:%s", inet_ntoa(address), argv[4]);
        snmp_sess_init(&wanted);
        wanted.version = SNMP_VERSION_2c;
        wanted.peername = peer;
        wanted.community = (unsigned char *) "public";
        wanted.community_len = 6;
        wanted.timeout = 2000000;
        wanted.retries = 2;
        sessions[n] = snmp_sess_open(&wanted);
        if (!sessions[n]) {
            snmp_perror("open a session");
            return 1;
        }
        struct epoll_event event = { .events = EPOLLIN, .data = { .u32 = n } };
        epoll_ctl(epoll, EPOLL_CTL_ADD, snmp_sess_transport(sessions[n])->sock, &event);
    }
    double cpu_before = cpu(), began = now();
    for (int round = 0; round < rounds; round++) {
        if (async)
            read_async(sessions, devices, epoll, &set);
        else
            read_sync(sessions, devices);
    }
    printf("{\"reads\":%ld,\"failed\":%ld,\"objects\":%d,\"cpu\":%.6f,\"seconds\":%.6f,\"sum\":%lu}\n", answered,
           failed, wanted_objects, cpu() - cpu_before, now() - began, sum);
    return 0;
}
