/* A PKCS#11 module in front of another one: it hands every call on, and lets one fail, or all from one on.
 *
 * The other module is the one that CMKFS_TOKEN_MODULE names; what is to fail stands in the file CMKFS_TOKEN_FAULTS,
 * which both sides have mapped: each call is counted, and fails with `error` if its number is in [from, until).
 * One that needs the token takes `delay` microseconds more, as on a network;
 * `most_at_once` tells how many such calls of all processes were under way at the same time.
 *
 * All functions of PKCS#11 2.40 take integers and pointers, eight at most, and give a CK_RV, so one form does for all
 * (System V and AAPCS64 calling conventions). The table's order is that of pkcs11f.h; C_Initialize, C_Finalize and
 * C_GetFunctionList (0, 1, 3) are never made to fail: a module that does not even load is another fault. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define FUNCTIONS 68
#define LOGIN 18
typedef unsigned long word;
typedef word function(word, word, word, word, word, word, word, word);

struct list {
    unsigned char version[2];
    function *functions[FUNCTIONS];
};

struct plan {
    uint64_t calls, from, until, error, struck;
    uint64_t delay, under_way, most_at_once;
    uint64_t login, logins;
};

static struct list here;
static function *real[FUNCTIONS];
static volatile struct plan *plan;

static int strikes(int number)
{
    if (!plan || number == 0 || number == 1 || number == 3)
        return 0;
    uint64_t call = __sync_fetch_and_add(&plan->calls, 1);
    if (call < plan->from || call >= plan->until)
        return 0;
    __sync_fetch_and_add(&plan->struck, 1);
    return 1;
}

/* What a client cannot answer by itself: not what asks about the module or begins an operation (C_EncryptInit). */
static int works(int number)
{
    return number >= 18 && number != 26 && number != 28 && number != 29 && number != 33 && number != 42;
}

static void begin(int number)
{
    if (!plan || !plan->delay || !works(number))
        return;
    uint64_t now = __sync_add_and_fetch(&plan->under_way, 1);
    for (uint64_t most = plan->most_at_once; now > most; most = plan->most_at_once)
        __sync_bool_compare_and_swap(&plan->most_at_once, most, now);
    usleep(plan->delay);
    __sync_sub_and_fetch(&plan->under_way, 1);
}

#define EACH(F) \
    F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11) F(12) F(13) F(14) F(15) F(16) F(17) F(18) F(19) \
    F(20) F(21) F(22) F(23) F(24) F(25) F(26) F(27) F(28) F(29) F(30) F(31) F(32) F(33) F(34) F(35) F(36) F(37) \
    F(38) F(39) F(40) F(41) F(42) F(43) F(44) F(45) F(46) F(47) F(48) F(49) F(50) F(51) F(52) F(53) F(54) F(55) \
    F(56) F(57) F(58) F(59) F(60) F(61) F(62) F(63) F(64) F(65) F(66) F(67)
#define CALL(n) \
    static word call##n(word a, word b, word c, word d, word e, word f, word g, word h) \
    { \
        begin(n); \
        if (n == LOGIN && plan) \
            __sync_fetch_and_add(&plan->logins, 1); \
        if (n == LOGIN && plan && plan->login) \
            return plan->login; \
        return strikes(n) ? plan->error : real[n](a, b, c, d, e, f, g, h); \
    }
#define ENTRY(n) here.functions[n] = call##n;
EACH(CALL)

word C_GetFunctionList(struct list **out)
{
    void *module = dlopen(getenv("CMKFS_TOKEN_MODULE"), RTLD_NOW);
    word (*get)(struct list **) = module ? (word(*)(struct list **))dlsym(module, "C_GetFunctionList") : NULL;
    struct list *theirs = NULL;
    if (!get || get(&theirs) != 0)
        return 5; /* CKR_GENERAL_ERROR */
    int fd = open(getenv("CMKFS_TOKEN_FAULTS"), O_RDWR | O_CLOEXEC);
    void *mapped = mmap(NULL, sizeof(struct plan), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped == MAP_FAILED)
        return 5;
    plan = mapped;
    memcpy(here.version, theirs->version, sizeof here.version);
    memcpy(real, theirs->functions, sizeof real);
    EACH(ENTRY)
    *out = &here;
    return 0;
}
